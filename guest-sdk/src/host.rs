//! The host's functions, for each way a program can be built. One module per target, the same three functions in each.

#[cfg(all(target_os = "wasi", target_env = "p1"))]
mod imp {
    use crate::TooLong;

    #[expect(unsafe_code, reason = "imports of the host; each call below passes a live slice")]
    #[link(wasm_import_module = "smalti")]
    unsafe extern "C" {
        #[link_name = "should_stop"]
        safe fn host_should_stop() -> i32;
        #[link_name = "progress"]
        fn host_progress(permille: i32, text: *const u8, len: usize);
        #[link_name = "result"]
        fn host_result(value: *const u8, len: usize) -> i32;
    }

    pub(crate) fn should_stop() -> bool {
        host_should_stop() != 0
    }

    pub(crate) fn progress(permille: i32, text: &str) {
        #[expect(unsafe_code, reason = "calls the host")]
        // SAFETY: pointer and length are those of a live string; the host only reads them.
        unsafe {
            host_progress(permille, text.as_ptr(), text.len());
        }
    }

    pub(crate) fn return_value(value: &[u8]) -> Result<(), TooLong> {
        #[expect(unsafe_code, reason = "calls the host")]
        // SAFETY: pointer and length are those of a live slice; the host only reads them.
        let refused = unsafe { host_result(value.as_ptr(), value.len()) };
        if refused == 0 { Ok(()) } else { Err(TooLong) }
    }
}

#[cfg(all(target_os = "wasi", target_env = "p2"))]
mod imp {
    use crate::TooLong;

    #[allow(unsafe_code, unreachable_pub, clippy::all, reason = "generated code")]
    mod bindings {
        wit_bindgen::generate!({ path: "../executor/wit", world: "guest" });
    }
    use bindings::smalti::guest::task;

    pub(crate) fn should_stop() -> bool {
        task::should_stop()
    }

    pub(crate) fn progress(permille: i32, text: &str) {
        task::progress(permille.unsigned_abs(), text);
    }

    pub(crate) fn return_value(value: &[u8]) -> Result<(), TooLong> {
        task::return_value(value).map_err(|_| TooLong)
    }
}

#[cfg(not(target_os = "wasi"))]
mod imp {
    use crate::TooLong;

    pub(crate) const fn should_stop() -> bool {
        false
    }

    pub(crate) const fn progress(_permille: i32, _text: &str) {}

    pub(crate) const fn return_value(_value: &[u8]) -> Result<(), TooLong> {
        Ok(())
    }
}

pub(crate) use imp::{progress, return_value, should_stop};
