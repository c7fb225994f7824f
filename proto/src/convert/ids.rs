//! Offer ids, task keys and update keys.

use super::{ConvertError, Result, at};
use crate::v1;
use smalti_types::{MasterEpoch, OfferId, TaskKey, UpdateKey};

impl TryFrom<v1::OfferId> for OfferId {
    type Error = ConvertError;
    fn try_from(m: v1::OfferId) -> Result<Self> {
        Ok(Self { epoch: MasterEpoch(m.epoch), number: m.number })
    }
}

impl From<OfferId> for v1::OfferId {
    fn from(id: OfferId) -> Self {
        Self { epoch: id.epoch.0, number: id.number }
    }
}

impl TryFrom<v1::TaskKey> for TaskKey {
    type Error = ConvertError;
    fn try_from(m: v1::TaskKey) -> Result<Self> {
        Ok(Self { framework: at("TaskKey", "framework").id(&m.framework)?, task: at("TaskKey", "task").id(&m.task)?, attempt: m.attempt })
    }
}

impl From<TaskKey> for v1::TaskKey {
    fn from(key: TaskKey) -> Self {
        Self { framework: key.framework.into(), task: key.task.into(), attempt: key.attempt }
    }
}

impl TryFrom<v1::UpdateKey> for UpdateKey {
    type Error = ConvertError;
    fn try_from(m: v1::UpdateKey) -> Result<Self> {
        Ok(Self { task: at("UpdateKey", "task").get(m.task)?, seq: m.seq })
    }
}

impl From<UpdateKey> for v1::UpdateKey {
    fn from(key: UpdateKey) -> Self {
        Self { task: Some(key.task.into()), seq: key.seq }
    }
}
