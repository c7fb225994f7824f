//! `smalti ps`: tasks, an array as one line unless `--items`.

use crate::cluster::{Cluster, ClusterOptions, Jobs};
use crate::failure::{Exit, Failure, Result, SUCCESS};
use crate::output::{self, OutputOptions, or_dash};
use crate::time::brief;
use crate::views::TaskJson;
use clap::Args;
use smalti_proto::v1::ListTasksRequest;

/// Tasks per answer.
const PAGE: u32 = 1_000;
const HEADER: [&str; 9] = ["TASK", "NAME", "ITEMS", "STATE", "AGENT", "TRY", "EXIT", "TIME", "WHY"];

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  smalti ps\n  smalti ps --all -o json\n  smalti ps --all --items $job")]
pub(crate) struct Ps {
    #[command(flatten)]
    cluster: ClusterOptions,
    #[command(flatten)]
    output: OutputOptions,
    /// Those that have ended, too
    #[arg(short, long)]
    all: bool,
    /// One line per item
    #[arg(long)]
    items: bool,
    /// Only this job's, or this task
    #[arg(value_name = "TASK|JOB")]
    of: Option<String>,
}

impl Ps {
    pub(crate) async fn run(self) -> Result<Exit> {
        let jobs = Cluster::connect(&self.cluster).await?.jobs().await?;
        let mut pages = Pages { jobs, request: self.request(), done: false };
        if self.output.is_json() {
            json_pages(&mut pages).await?;
        } else {
            let mut first = true;
            while let Some(page) = pages.next().await? {
                if first || !page.is_empty() {
                    output::line(&output::table(first.then_some(&HEADER[..]), page.iter().map(row)))?;
                }
                first = false;
            }
        }
        Ok(SUCCESS)
    }

    fn request(&self) -> ListTasksRequest {
        ListTasksRequest {
            job_or_task: self.of.clone().unwrap_or_default(),
            // What is named is wanted, ended or not.
            all: self.all || self.of.is_some(),
            items: self.items,
            limit: PAGE,
            page: String::new(),
        }
    }
}

/// The list, a page at a time: an array may have millions of items.
struct Pages {
    jobs: Jobs,
    request: ListTasksRequest,
    done: bool,
}

impl Pages {
    async fn next(&mut self) -> Result<Option<Vec<TaskJson>>> {
        if self.done {
            return Ok(None);
        }
        let list = self.jobs.list_tasks(self.request.clone()).await.map_err(|s| Failure::rpc("listing tasks", &s))?.into_inner();
        // A page that leads to itself would never end.
        self.done = list.next_page.is_empty() || list.next_page == self.request.page;
        self.request.page = list.next_page;
        Ok(Some(list.tasks.into_iter().map(TaskJson::from).collect()))
    }
}

/// One array over all pages.
async fn json_pages(pages: &mut Pages) -> Result<()> {
    let mut separator = "[";
    while let Some(page) = pages.next().await? {
        for task in page {
            let text = serde_json::to_string(&task).map_err(|e| Failure::new(format!("printing as JSON: {e}")))?;
            output::write(format!("{separator}\n  {text}").as_bytes())?;
            separator = ",";
        }
    }
    output::line(if separator == "[" { "[]" } else { "\n]" })
}

fn row(task: &TaskJson) -> Vec<String> {
    let items = match (&task.items, task.item) {
        (_, Some(item)) => format!("#{item}"),
        (Some(items), None) if items.failed > 0 => format!("{}/{}, {} failed", items.finished, items.total, items.failed),
        (Some(items), None) => format!("{}/{}", items.finished, items.total),
        (None, None) => "-".to_owned(),
    };
    let progress = task.progress.as_ref().map(|p| format!("{}.{}% {}", p.permille / 10, p.permille % 10, p.text));
    let why = [Some(task.reason.clone()), Some(task.message.clone()), progress];
    let why: Vec<_> = why.into_iter().flatten().filter(|t| !t.is_empty()).collect();
    vec![
        task.task_id.clone(),
        task.name.clone(),
        items,
        task.state.to_owned(),
        task.agent_id.clone().unwrap_or_else(|| "-".into()),
        task.attempt.to_string(),
        task.exit_code.map_or_else(|| "-".into(), |c| c.to_string()),
        task.age_us.map_or_else(|| "-".into(), brief),
        or_dash(&why.join(": ")),
    ]
}
