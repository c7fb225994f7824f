//! One bundle of the cluster's store.

use crate::time::rfc3339;
use serde::Serialize;
use smalti_proto::v1;
use smalti_types::Digest;

#[derive(Debug, Serialize)]
pub(crate) struct BundleView {
    /// `blake3:<64 hex digits>`.
    pub(crate) digest: String,
    /// Bytes.
    pub(crate) size: u64,
    /// The file name it was pushed under first.
    pub(crate) name: String,
    pub(crate) created_at: Option<String>,
    /// Which roles may use it; `null`: all, or it was a role that asked.
    pub(crate) roles: Option<Vec<String>>,
}

impl BundleView {
    /// The same for people.
    pub(crate) fn who(&self) -> String {
        match self.roles.as_deref() {
            None => "all roles".into(),
            Some([]) => "no role".into(),
            Some(roles) => roles.join(", "),
        }
    }
}

impl From<v1::BundleInfo> for BundleView {
    fn from(info: v1::BundleInfo) -> Self {
        Self {
            digest: digest_text(&info.digest),
            size: info.length,
            name: info.name,
            created_at: rfc3339(info.created_us),
            roles: info.roles.map(|r| r.roles),
        }
    }
}

/// A digest as text; what is no digest is said to be none, so that a list never fails over one bad row.
fn digest_text(bytes: &[u8]) -> String {
    <[u8; 32]>::try_from(bytes).map_or_else(|_| "invalid".into(), |b| Digest::from_bytes(b).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_named_by_its_digest() {
        let digest = Digest::of(b"x");
        let info = v1::BundleInfo { digest: digest.as_bytes().to_vec().into(), length: 1, ..Default::default() };
        let view = BundleView::from(info);
        assert_eq!((view.who().as_str(), view.digest, view.size), ("all roles", digest.to_string(), 1));
        let restricted = |roles: &[&str]| {
            let roles = roles.iter().map(|r| (*r).to_owned()).collect();
            BundleView::from(v1::BundleInfo { roles: Some(v1::BundleRoles { roles }), ..Default::default() })
        };
        assert_eq!((restricted(&[]).who().as_str(), restricted(&["a", "b"]).who().as_str()), ("no role", "a, b"));
        assert_eq!(BundleView::from(v1::BundleInfo::default()).digest, "invalid");
    }
}
