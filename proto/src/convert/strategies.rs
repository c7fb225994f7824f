//! Random domain values for the round-trip tests: everything that may be sent, nothing that must be refused.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use smalti_types::protocol::{AgentCommand, Call, Claim, FrameworkEvent, Registration, RunningTask, Subscription};
use smalti_types::task::OutputSource;
use smalti_types::{
    AgentId, AgentInfo, ArrayDelta, ArrayTemplate, Attributes, BootTime, BundleRef, Bytes, Digest, DurationMs, Endpoint, FailedItem,
    Filters, FrameworkId, FrameworkInfo, HoldingKey, HoldingsChange, HoldingsNews, Input, Isolation, ItemBatch, ItemRange, ItemSet, Launch,
    LaunchArray, Limits, MasterEpoch, MilliCpus, MilliUnits, Offer, OfferId, Operation, Packing, PortRange, PortSet, Reason, Resources,
    Role, Split, StatusUpdate, Stdin, TaskId, TaskKey, TaskSpec, TaskState, Time, UpdateKey, Usage,
};

fn id_text() -> impl Strategy<Value = String> {
    vec(prop::sample::select(b"abcXYZ019._-".to_vec()), 0..20).prop_map(|tail| {
        let tail: String = tail.into_iter().map(char::from).collect();
        format!("t{tail}")
    })
}

fn text() -> impl Strategy<Value = String> {
    vec(prop::char::range('\u{1}', '\u{2fff}'), 0..12).prop_map(|chars| chars.into_iter().collect())
}

fn agent() -> impl Strategy<Value = AgentId> {
    id_text().prop_map(|t| AgentId::new(t).unwrap())
}

fn framework() -> impl Strategy<Value = FrameworkId> {
    id_text().prop_map(|t| FrameworkId::new(t).unwrap())
}

fn task() -> impl Strategy<Value = TaskId> {
    id_text().prop_map(|t| TaskId::new(t).unwrap())
}

fn role() -> impl Strategy<Value = Role> {
    id_text().prop_map(|t| Role::new(t).unwrap())
}

fn key() -> impl Strategy<Value = TaskKey> {
    (framework(), task(), any::<u32>()).prop_map(|(framework, task, attempt)| TaskKey { framework, task, attempt })
}

fn offer_id() -> impl Strategy<Value = OfferId> {
    any::<(u64, u64)>().prop_map(|(epoch, number)| OfferId { epoch: MasterEpoch(epoch), number })
}

fn amount() -> impl Strategy<Value = u64> {
    0..=i64::MAX as u64
}

fn duration() -> impl Strategy<Value = DurationMs> {
    (0..=super::MAX_DURATION_MS).prop_map(DurationMs)
}

fn port_set() -> impl Strategy<Value = PortSet> {
    vec((1_u16..60_000, 0_u16..100), 0..5)
        .prop_map(|ports| ports.into_iter().map(|(first, n)| PortRange { first, last: first + n }).collect())
}

pub(super) fn resources() -> impl Strategy<Value = Resources> {
    (amount(), amount(), amount(), port_set(), btree_map(text(), amount(), 0..4)).prop_map(|(cpus, mem, disk, ports, custom)| {
        let mut r = Resources { cpus: MilliCpus(cpus), mem: Bytes(mem), disk: Bytes(disk), ports, ..Resources::default() };
        custom.into_iter().for_each(|(name, amount)| r.set_custom(&name, MilliUnits(amount)));
        r
    })
}

pub(super) fn item_set() -> impl Strategy<Value = ItemSet> {
    vec((0_u64..1 << 50, 1_u64..9), 0..6).prop_map(|v| v.into_iter().map(|(first, n)| ItemRange { first, end: first + n }).collect())
}

pub(super) fn bundle_ref() -> impl Strategy<Value = BundleRef> {
    (any::<[u8; 32]>(), option::of(text())).prop_map(|(d, uri)| BundleRef { digest: Digest::from_bytes(d), uri })
}

fn limits() -> impl Strategy<Value = Limits> {
    (option::of(duration()), duration(), any::<Option<u64>>(), amount()).prop_map(|(timeout, grace, fuel, output)| Limits {
        timeout,
        grace,
        fuel,
        output: Bytes(output),
    })
}

fn input() -> impl Strategy<Value = Input> {
    let packing = option::of(prop_oneof![Just(Packing::Plain), Just(Packing::Gzip), Just(Packing::Zstd)]);
    (option::of(text()), text(), any::<Option<[u8; 32]>>(), amount(), option::of(text()), packing).prop_map(
        |(guest_path, uri, digest, length, etag, packing)| Input {
            guest_path,
            uri: digest.is_none().then_some(uri),
            digest: digest.map(Digest::from_bytes),
            length,
            etag,
            packing,
        },
    )
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let host = prop_oneof![
        prop::sample::select(vec!["localhost", "db.example.org", "xn--bcher-kva.example"]).prop_map(str::to_owned),
        any::<std::net::Ipv4Addr>().prop_map(|a| a.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|a| a.to_string()),
    ];
    (host, 1_u16..).prop_map(|(host, port)| Endpoint::new(&host, port).unwrap())
}

fn stdin() -> impl Strategy<Value = Stdin> {
    let source =
        (agent(), task(), any::<u32>(), item_set()).prop_map(|(agent, task, attempt, items)| OutputSource { agent, task, attempt, items });
    prop_oneof![Just(Stdin::Empty), Just(Stdin::Split), input().prop_map(Stdin::Object), vec(source, 0..3).prop_map(Stdin::Outputs)]
}

pub(super) fn task_spec() -> impl Strategy<Value = TaskSpec> {
    let isolation = prop::sample::select(vec![Isolation::Instance, Isolation::Process]);
    let disk_path = option::of(id_text().prop_map(|t| format!("/{t}")));
    let head = (bundle_ref(), vec(text(), 0..3), vec((id_text(), text()), 0..3), stdin(), vec(input(), 0..2), limits());
    (head, isolation, vec(endpoint(), 0..3), disk_path, any::<bool>()).prop_map(
        |((bundle, args, env, stdin, inputs, limits), isolation, connect, disk_path, exclusive)| TaskSpec {
            bundle,
            args,
            env,
            stdin,
            inputs,
            limits,
            isolation,
            connect,
            disk_path,
            exclusive,
        },
    )
}

fn launch() -> impl Strategy<Value = Launch> {
    (task(), any::<u32>(), resources(), task_spec()).prop_map(|(task, attempt, resources, spec)| Launch { task, attempt, resources, spec })
}

pub(super) fn item_batch() -> impl Strategy<Value = ItemBatch> {
    let split = any::<(u32, u32, u32)>();
    (item_set(), any::<u32>(), option::of(split)).prop_map(|(items, attempt, split)| {
        let splits = split.map(|(input, offset, length)| {
            items.iter().map(|item| Split { item, input, offset: offset.into(), length: length.into() }).collect()
        });
        ItemBatch { items, attempt, splits: splits.unwrap_or_default() }
    })
}

fn launch_array() -> impl Strategy<Value = LaunchArray> {
    let template = (task_spec(), 0..=super::MAX_ITEM_END, vec(input(), 0..2)).prop_map(|(spec, total_items, split_inputs)| ArrayTemplate {
        spec,
        total_items,
        split_inputs,
    });
    (task(), any::<u32>(), resources(), any::<u32>(), template, item_batch(), any::<bool>()).prop_map(
        |(task, attempt, slot_resources, slots, template, batch, open)| LaunchArray {
            task,
            attempt,
            slot_resources,
            slots,
            template,
            batch,
            open,
        },
    )
}

pub(super) fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![launch().prop_map(Operation::Launch), launch_array().prop_map(Operation::LaunchArray)]
}

fn state() -> impl Strategy<Value = TaskState> {
    prop::sample::select(TaskState::ALL.to_vec())
}

fn reason() -> impl Strategy<Value = Reason> {
    prop::sample::select(Reason::ALL.to_vec())
}

fn usage() -> impl Strategy<Value = Usage> {
    any::<(u64, u64, u64, u64, u64, Option<u64>)>().prop_map(|(cpu_us, wall_us, peak_memory, bytes_read, bytes_written, fuel)| Usage {
        cpu_us,
        wall_us,
        peak_memory,
        bytes_read,
        bytes_written,
        fuel,
    })
}

fn array_delta() -> impl Strategy<Value = ArrayDelta> {
    let terminal = state().prop_filter("terminal", |s| s.is_terminal());
    let failed = (0_u64..1 << 53, any::<u32>(), terminal, reason(), text(), any::<Option<i32>>())
        .prop_map(|(item, attempt, state, reason, message, exit_code)| FailedItem { item, attempt, state, reason, message, exit_code });
    let results = vec((0_u64..1 << 53, vec(any::<u8>(), 0..9)), 0..3);
    (item_set(), vec(failed, 0..3), item_set(), results, any::<u64>(), any::<u32>(), usage()).prop_map(
        |(finished, failed, returned, results, outstanding, slots, usage)| ArrayDelta {
            finished,
            failed,
            returned,
            results,
            outstanding,
            slots,
            usage,
        },
    )
}

pub(super) fn status_update() -> impl Strategy<Value = StatusUpdate> {
    let head = (key(), any::<u64>(), state(), reason(), text(), any::<Option<i32>>(), usage(), any::<u64>());
    let tail = (option::of((0_u16..=1000, text())), option::of(vec(any::<u8>(), 0..9)), option::of(array_delta()), port_set());
    (head, tail).prop_map(|((task, seq, state, reason, message, exit_code, usage, time), (progress, result, array, ports_in_use))| {
        StatusUpdate {
            key: UpdateKey { task, seq },
            state,
            reason,
            message,
            exit_code,
            usage,
            time: Time(time),
            progress,
            result,
            array,
            ports_in_use,
        }
    })
}

pub(crate) fn framework_info() -> impl Strategy<Value = FrameworkInfo> {
    (text(), text(), role(), duration(), btree_map(text(), text(), 0..3))
        .prop_map(|(name, principal, role, failover_timeout, services)| FrameworkInfo { name, principal, role, failover_timeout, services })
}

pub(crate) fn agent_info() -> impl Strategy<Value = AgentInfo> {
    let labels = || btree_map(text(), text(), 0..3);
    (agent(), text(), resources(), resources(), labels(), labels(), text(), any::<u64>()).prop_map(
        |(id, hostname, total, overhead, attributes, isolation, boot_id, incarnation)| AgentInfo {
            id,
            hostname,
            total,
            overhead,
            attributes: Attributes(attributes),
            isolation,
            boot_id,
            incarnation,
        },
    )
}

pub(super) fn offer() -> impl Strategy<Value = Offer> {
    (offer_id(), framework(), role(), agent(), text(), resources(), btree_map(text(), text(), 0..3), holding_keys()).prop_map(
        |(id, framework, role, agent, hostname, resources, attributes, holdings)| Offer {
            id,
            framework,
            role,
            agent,
            hostname,
            resources,
            attributes: Attributes(attributes),
            holdings,
        },
    )
}

fn holding_keys() -> impl Strategy<Value = Vec<HoldingKey>> {
    vec(any::<u64>().prop_map(HoldingKey), 0..4)
}

pub(super) fn holdings_news() -> impl Strategy<Value = HoldingsNews> {
    let change = (holding_keys(), holding_keys()).prop_map(|(added, removed)| HoldingsChange { added, removed });
    let address = option::of((1..=u16::MAX).prop_map(|port| (std::net::Ipv4Addr::LOCALHOST, port).into()));
    (any::<bool>(), address, btree_map(role(), change, 0..3)).prop_map(|(all, address, changes)| HoldingsNews { all, address, changes })
}

pub(super) fn registration() -> impl Strategy<Value = Registration> {
    let running = (key(), state(), resources(), option::of(resources()), any::<bool>())
        .prop_map(|(key, state, resources, slot_resources, exclusive)| RunningTask { key, state, resources, slot_resources, exclusive });
    (agent_info(), vec(running, 0..3), vec(status_update(), 0..3)).prop_map(|(info, tasks, unacknowledged)| Registration {
        info,
        tasks,
        unacknowledged,
    })
}

pub(super) fn agent_command() -> impl Strategy<Value = AgentCommand> {
    prop_oneof![
        (framework(), role(), launch()).prop_map(|(framework, role, launch)| AgentCommand::Launch { framework, role, launch }),
        (framework(), role(), launch_array()).prop_map(|(framework, role, launch)| AgentCommand::LaunchArray { framework, role, launch }),
        (key(), item_batch(), any::<bool>()).prop_map(|(task, batch, open)| AgentCommand::AssignItems { task, batch, open }),
        (key(), any::<u64>()).prop_map(|(task, most)| AgentCommand::ReturnItems { task, most }),
        (key(), option::of(duration())).prop_map(|(task, grace)| AgentCommand::Kill { task, grace }),
        (key(), any::<u64>()).prop_map(|(task, seq)| AgentCommand::Acknowledge(UpdateKey { task, seq })),
        (any::<u64>(), duration()).prop_map(|(asked, lease)| AgentCommand::Lease { asked: BootTime(asked), lease }),
    ]
}

pub(super) fn subscription() -> impl Strategy<Value = Subscription> {
    let claim = (any::<u64>(), any::<u64>()).prop_map(|(life, turn)| Claim { life, turn });
    (framework_info(), option::of(framework()), claim).prop_map(|(info, id, claim)| Subscription { info, id, claim })
}

pub(super) fn call() -> impl Strategy<Value = Call> {
    let filters = || duration().prop_map(|refuse| Filters { refuse });
    let offers = || vec(offer_id(), 0..3);
    prop_oneof![
        (offers(), vec(operation(), 0..3), filters()).prop_map(|(offers, operations, filters)| Call::Accept {
            offers,
            operations,
            filters
        }),
        (offers(), filters()).prop_map(|(offers, filters)| Call::Decline { offers, filters }),
        Just(Call::Revive),
        Just(Call::Suppress),
        Just(Call::Teardown),
        (task(), any::<u32>(), option::of(duration())).prop_map(|(task, attempt, grace)| Call::Kill { task, attempt, grace }),
        vec((task(), any::<u32>(), any::<u64>()), 0..3).prop_map(Call::Acknowledge),
        vec((task(), any::<u32>(), option::of(agent())), 0..3).prop_map(Call::Reconcile),
        (task(), any::<u32>(), item_batch(), any::<bool>()).prop_map(|(task, attempt, batch, open)| Call::AssignItems {
            task,
            attempt,
            batch,
            open
        }),
        (task(), any::<u32>(), any::<u64>()).prop_map(|(task, attempt, most)| Call::ReturnItems { task, attempt, most }),
    ]
}

pub(super) fn framework_event() -> impl Strategy<Value = FrameworkEvent> {
    prop_oneof![
        (framework(), any::<u64>()).prop_map(|(framework, epoch)| FrameworkEvent::Subscribed { framework, epoch: MasterEpoch(epoch) }),
        vec(offer(), 0..3).prop_map(FrameworkEvent::Offers),
        vec(offer_id(), 0..3).prop_map(FrameworkEvent::Rescind),
        vec((option::of(agent()), status_update()), 0..3).prop_map(FrameworkEvent::Updates),
        (agent(), text()).prop_map(|(agent, reason)| FrameworkEvent::AgentLost { agent, reason }),
        (text(), text()).prop_map(|(call, message)| FrameworkEvent::Refused { call, message }),
        text().prop_map(FrameworkEvent::Error),
        (any::<u64>(), text()).prop_map(|(life, message)| FrameworkEvent::Fenced { life, message }),
    ]
}
