// SPDX-License-Identifier: Apache-2.0
//! The C face of `tokenizers::Tokenizer`.

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use crate::{bytes, guarded, silence_panics, text, Buffer, Failure, Outcome};

/// A token and what it covers; see `FettleToken` in the header.
#[repr(C)]
pub struct Token {
    id: u32,
    begin: u32,
    end: u32,
}

/// Tokens that this library owns; see `FettleTokens` in the header.
#[repr(C)]
pub struct Tokens {
    data: *mut Token,
    size: usize,
    capacity: usize,
}

/// Replaces top-level keys of `json` by those of `patch`, in `model` the keys one level down: the vocabulary stays.
fn apply_patch(json: &mut Value, patch: Value) -> Outcome<()> {
    let Value::Object(patch) = patch else {
        return Err(Failure::new("the patch is not a JSON object"));
    };
    let root = json.as_object_mut().ok_or_else(|| Failure::new("not a JSON object"))?;
    for (key, value) in patch {
        match (key.as_str(), value) {
            ("model", Value::Object(fields)) => {
                let model =
                    root.get_mut("model").and_then(Value::as_object_mut).ok_or_else(|| Failure::new("no model"))?;
                model.extend(fields);
            }
            (_, value) => {
                root.insert(key, value);
            }
        }
    }
    Ok(())
}

fn build(json: &[u8], patch: &[u8]) -> Outcome<Tokenizer> {
    let mut value: Value = serde_json::from_slice(json)?;
    if !patch.is_empty() {
        apply_patch(&mut value, serde_json::from_slice(patch)?)?;
    }
    let mut tokenizer: Tokenizer = serde_json::from_value(value)?;
    tokenizer.with_truncation(None)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// # Safety
/// See the header; the pointers are valid for the call.
#[no_mangle]
pub unsafe extern "C" fn fettle_tokenizer_new(
    json: *const u8,
    json_size: usize,
    patch: *const u8,
    patch_size: usize,
    out: *mut *mut Tokenizer,
    error: *mut Buffer,
) -> i32 {
    silence_panics();
    guarded(error, || {
        let tokenizer = build(bytes(json, json_size), bytes(patch, patch_size))?;
        *out = Box::into_raw(Box::new(tokenizer));
        Ok(())
    })
}

/// # Safety
/// `tokenizer` is null or a live handle, used by nobody else.
#[no_mangle]
pub unsafe extern "C" fn fettle_tokenizer_free(tokenizer: *mut Tokenizer) {
    if !tokenizer.is_null() {
        drop(Box::from_raw(tokenizer));
    }
}

/// # Safety
/// `tokenizer` is a live handle, used by nobody else during the call.
#[no_mangle]
pub unsafe extern "C" fn fettle_tokenizer_add_tokens(
    tokenizer: *mut Tokenizer,
    tokens: *const u8,
    tokens_size: usize,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        let tokens: Vec<AddedToken> = serde_json::from_slice(bytes(tokens, tokens_size))?;
        (*tokenizer).add_tokens(tokens)?;
        Ok(())
    })
}

/// # Safety
/// `tokenizer` is a live handle.
#[no_mangle]
pub unsafe extern "C" fn fettle_tokenizer_clone_literal(
    tokenizer: *const Tokenizer,
    marker: *const u8,
    marker_size: usize,
    out: *mut *mut Tokenizer,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        let mut literal = (*tokenizer).clone();
        literal.set_encode_special_tokens(true);
        literal.add_tokens([AddedToken::from(text(marker, marker_size)?, false).normalized(false)])?;
        *out = Box::into_raw(Box::new(literal));
        Ok(())
    })
}

/// # Safety
/// `tokenizer` is a live handle; `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn fettle_tokenizer_encode(
    tokenizer: *const Tokenizer,
    input: *const u8,
    input_size: usize,
    add_special_tokens: i32,
    out: *mut Tokens,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        if input_size > u32::MAX as usize {
            return Err(Failure::new("a text of 4 GiB or more"));
        }
        let encoding = (*tokenizer).encode(text(input, input_size)?, add_special_tokens != 0)?;
        let tokens: Vec<Token> = encoding
            .get_ids()
            .iter()
            .zip(encoding.get_offsets())
            .map(|(&id, &(begin, end))| Token { id, begin: begin as u32, end: end as u32 })
            .collect();
        let mut tokens = std::mem::ManuallyDrop::new(tokens);
        *out = Tokens { data: tokens.as_mut_ptr(), size: tokens.len(), capacity: tokens.capacity() };
        Ok(())
    })
}

/// # Safety
/// `tokens` is null, zeroed, or was filled by `fettle_tokenizer_encode` and not freed since.
#[no_mangle]
pub unsafe extern "C" fn fettle_tokens_free(tokens: *mut Tokens) {
    if let Some(tokens) = tokens.as_mut() {
        if !tokens.data.is_null() {
            drop(Vec::from_raw_parts(tokens.data, tokens.size, tokens.capacity));
        }
        tokens.data = std::ptr::null_mut();
        tokens.size = 0;
        tokens.capacity = 0;
    }
}

/// # Safety
/// `tokenizer` is a live handle; `ids` points to `count` ids; `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn fettle_tokenizer_decode(
    tokenizer: *const Tokenizer,
    ids: *const u32,
    count: usize,
    skip_special_tokens: i32,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        let ids = if count == 0 { &[] } else { std::slice::from_raw_parts(ids, count) };
        let decoded = (*tokenizer).decode(ids, skip_special_tokens != 0)?;
        *out = Buffer::from_vec(decoded.into_bytes());
        Ok(())
    })
}

/// # Safety
/// `tokenizer` is a live handle.
#[no_mangle]
pub unsafe extern "C" fn fettle_tokenizer_id(tokenizer: *const Tokenizer, token: *const u8, token_size: usize) -> i64 {
    text(token, token_size).ok().and_then(|token| (*tokenizer).token_to_id(token)).map_or(-1, i64::from)
}

/// # Safety
/// `tokenizer` is a live handle; `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn fettle_tokenizer_token(
    tokenizer: *const Tokenizer,
    id: u32,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        let token = (*tokenizer).id_to_token(id).ok_or_else(|| Failure::new(format!("no token has the id {id}")))?;
        *out = Buffer::from_vec(token.into_bytes());
        Ok(())
    })
}

/// # Safety
/// `tokenizer` is a live handle.
#[no_mangle]
pub unsafe extern "C" fn fettle_tokenizer_size(tokenizer: *const Tokenizer) -> i64 {
    let vocabulary = (*tokenizer).get_vocab(true);
    vocabulary.values().max().map_or(0, |&id| i64::from(id) + 1)
}

/// # Safety
/// `tokenizer` is a live handle; `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn fettle_tokenizer_added_tokens(
    tokenizer: *const Tokenizer,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        let mut tokens: Vec<(u32, AddedToken)> = (*tokenizer).get_added_tokens_decoder().into_iter().collect();
        tokens.sort_by_key(|(id, _)| *id);
        let list: Vec<Value> = tokens
            .into_iter()
            .map(|(id, token)| {
                serde_json::json!({
                    "id": id, "content": token.content, "special": token.special,
                    "lstrip": token.lstrip, "rstrip": token.rstrip, "normalized": token.normalized,
                })
            })
            .collect();
        *out = Buffer::from_vec(serde_json::to_vec(&list)?);
        Ok(())
    })
}

/// # Safety
/// `tokenizer` is a live handle; `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn fettle_tokenizer_json(
    tokenizer: *const Tokenizer,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        *out = Buffer::from_vec(serde_json::to_vec(&*tokenizer)?);
        Ok(())
    })
}
