// SPDX-License-Identifier: Apache-2.0
//! BLAKE3 hashes, by the `blake3` crate.

use crate::bytes;
use blake3::Hasher;

#[no_mangle]
pub extern "C" fn fettle_blake3_new() -> *mut Hasher {
    Box::into_raw(Box::new(Hasher::new()))
}

/// # Safety
/// `hasher` is null or came from [`fettle_blake3_new`] and was not freed.
#[no_mangle]
pub unsafe extern "C" fn fettle_blake3_free(hasher: *mut Hasher) {
    if !hasher.is_null() {
        drop(Box::from_raw(hasher));
    }
}

/// # Safety
/// `hasher` is alive; `data` points to `size` readable bytes.
#[no_mangle]
pub unsafe extern "C" fn fettle_blake3_update(hasher: *mut Hasher, data: *const u8, size: usize) {
    (*hasher).update(bytes(data, size));
}

/// # Safety
/// `hasher` is alive; `out` points to 32 writable bytes.
#[no_mangle]
pub unsafe extern "C" fn fettle_blake3_finish(hasher: *const Hasher, out: *mut u8) {
    let hash = (*hasher).finalize();
    std::ptr::copy_nonoverlapping(hash.as_bytes().as_ptr(), out, blake3::OUT_LEN);
}
