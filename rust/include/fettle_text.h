/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A C ABI over the Rust crates tokenizers, minijinja (chat templates), parquet and blake3.
 *
 * Conventions, which hold for every function:
 * - A text is a pointer and a size in bytes, UTF-8, without a final zero. It is only read, only during the call, and
 *   the pointer may be null when the size is 0.
 * - A function that can fail returns a FettleStatus. On failure it fills `error` (if not null) with a message and
 *   leaves the out parameters alone; on success it leaves `error` alone. A panic inside a crate is a failure too.
 *   Without memory or stack left, the process ends with one line "error: …" and code 71 or 65.
 * - Buffers and handles belong to the caller, who frees each with its own function; freeing null or a zeroed struct
 *   does nothing. Out parameters are overwritten, not freed.
 * - A const handle may be used by many threads at once; a handle that is not const by one at a time.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum FettleStatus {
  FETTLE_OK = 0,
  FETTLE_FAILED = 1,
  FETTLE_RAISED = 2 /* a chat template called raise_exception; the message is its own */
};

/* Bytes owned by the library's allocator. */
typedef struct FettleBuffer {
  uint8_t* data;
  size_t size;
  size_t capacity;
} FettleBuffer;

void fettle_buffer_free(FettleBuffer* buffer);

/* ---- tokenizers ---- */

typedef struct FettleTokenizer FettleTokenizer;

/* A token and the bytes [begin, end) of the text that it covers; begin == end for one that the tokenizer added. */
typedef struct FettleToken {
  uint32_t id;
  uint32_t begin;
  uint32_t end;
} FettleToken;

typedef struct FettleTokens {
  FettleToken* data;
  size_t size;
  size_t capacity;
} FettleTokens;

void fettle_tokens_free(FettleTokens* tokens);

/* From the text of a tokenizer.json. `patch` is empty or a JSON object whose keys replace the file's top-level keys;
 * the keys of its "model" replace single fields of the model. Truncation and padding in the file are ignored. */
int32_t fettle_tokenizer_new(const uint8_t* json, size_t json_size, const uint8_t* patch, size_t patch_size,
                             FettleTokenizer** out, FettleBuffer* error);
void fettle_tokenizer_free(FettleTokenizer* tokenizer);

/* Adds tokens: a JSON array of {"content", "single_word", "lstrip", "rstrip", "normalized", "special"}. One that the
 * model's vocabulary has keeps its id, another gets the next free one. */
int32_t fettle_tokenizer_add_tokens(FettleTokenizer* tokenizer, const uint8_t* tokens, size_t tokens_size,
                                    FettleBuffer* error);

/* A copy to which text that spells a special token is ordinary text, and in which `marker` is one more added token. */
int32_t fettle_tokenizer_clone_literal(const FettleTokenizer* tokenizer, const uint8_t* marker, size_t marker_size,
                                       FettleTokenizer** out, FettleBuffer* error);

int32_t fettle_tokenizer_encode(const FettleTokenizer* tokenizer, const uint8_t* text, size_t text_size,
                                int32_t add_special_tokens, FettleTokens* out, FettleBuffer* error);

/* Ids without a token are skipped. */
int32_t fettle_tokenizer_decode(const FettleTokenizer* tokenizer, const uint32_t* ids, size_t count,
                                int32_t skip_special_tokens, FettleBuffer* out, FettleBuffer* error);

/* The id of a token, -1 if there is none. */
int64_t fettle_tokenizer_id(const FettleTokenizer* tokenizer, const uint8_t* token, size_t token_size);

/* The spelling of a token in the vocabulary; fails if no token has the id. */
int32_t fettle_tokenizer_token(const FettleTokenizer* tokenizer, uint32_t id, FettleBuffer* out, FettleBuffer* error);

/* The largest id + 1. */
int64_t fettle_tokenizer_size(const FettleTokenizer* tokenizer);

/* The added tokens by id, as a JSON array of {"id", "content", "special", "normalized", "lstrip", "rstrip"}. */
int32_t fettle_tokenizer_added_tokens(const FettleTokenizer* tokenizer, FettleBuffer* out, FettleBuffer* error);

/* The tokenizer as the text of a tokenizer.json: the file's, patched, with all added tokens. */
int32_t fettle_tokenizer_json(const FettleTokenizer* tokenizer, FettleBuffer* out, FettleBuffer* error);

/* ---- chat templates ---- */

typedef struct FettleTemplate FettleTemplate;

/* Compiles a Jinja template; fails with the reason and the line for a syntax error. `date` is what its strftime_now
 * says it is: YYYY-MM-DD, or empty for the time of each call. */
int32_t fettle_template_new(const uint8_t* source, size_t source_size, const uint8_t* date, size_t date_size,
                            FettleTemplate** out, FettleBuffer* error);
void fettle_template_free(FettleTemplate* chat_template);

/* 1 if it has {% generation %} blocks, else 0. */
int32_t fettle_template_marks_generation(const FettleTemplate* chat_template);

/* Renders with the variables of a JSON object. `marks` is empty, or two characters that then stand before and after the
 * output of each {% generation %} block. */
int32_t fettle_template_render(const FettleTemplate* chat_template, const uint8_t* context, size_t context_size,
                               const uint8_t* marks, size_t marks_size, FettleBuffer* out, FettleBuffer* error);

/* ---- parquet ---- */

typedef struct FettleParquet FettleParquet;

/* A reader over a Parquet file in memory, which must stay readable and unchanged until the reader is freed. */
int32_t fettle_parquet_new(const uint8_t* data, size_t size, FettleParquet** out, FettleBuffer* error);
void fettle_parquet_free(FettleParquet* reader);

/* Rows of the file, as its footer says. */
int64_t fettle_parquet_rows(const FettleParquet* reader);

/* The next rows, about 1 MB of them, as JSON lines; *more is 0 (and the buffer empty) after the last. */
int32_t fettle_parquet_next(FettleParquet* reader, FettleBuffer* out, int32_t* more, FettleBuffer* error);

/* ---- blake3 ---- */

typedef struct FettleBlake3 FettleBlake3;

FettleBlake3* fettle_blake3_new(void);
void fettle_blake3_free(FettleBlake3* hasher);
void fettle_blake3_update(FettleBlake3* hasher, const uint8_t* data, size_t size);

/* The hash of all bytes so far, into 32 bytes. */
void fettle_blake3_finish(const FettleBlake3* hasher, uint8_t* out);

#ifdef __cplusplus
}
#endif
