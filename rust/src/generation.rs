// SPDX-License-Identifier: Apache-2.0
//! `{% generation %}` … `{% endgeneration %}`: transformers' extension tag around what the model is to say.
//!
//! minijinja has no extension tags, so the tags become a call block (`{% call generation_block() %}`), which gives the
//! same scope and the same white-space control as transformers' own extension does.

/// The template with its generation tags replaced, and whether it had any.
pub fn replace_generation_tags(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut found = false;
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (before, tail) = rest.split_at(start);
        out.push_str(before);
        let size = construct_size(tail);
        let (construct, after) = tail.split_at(size);
        match replaced_tag(construct) {
            Some(tag) => {
                found = true;
                out.push_str(&tag);
            }
            None => out.push_str(construct),
        }
        rest = after;
    }
    out.push_str(rest);
    (out, found)
}

/// How much of `text`, which starts with a brace, is one comment, expression, tag or raw block; 1 for a mere brace.
fn construct_size(text: &str) -> usize {
    if text.starts_with("{#") {
        return text.find("#}").map_or(text.len(), |end| end + 2);
    }
    let close = if text.starts_with("{{") {
        "}}"
    } else if text.starts_with("{%") {
        "%}"
    } else {
        return 1;
    };
    let size = end_of_code(text, close);
    if tag_name(&text[..size]) == Some("raw") {
        return end_of_raw(text, size);
    }
    size
}

/// The end of the code that `text` starts with; quoted strings may hold `close`.
fn end_of_code(text: &str, close: &str) -> usize {
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut i = 2;
    while i < bytes.len() {
        match (quote, bytes[i]) {
            (Some(_), b'\\') => i += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
            (None, _) if bytes[i..].starts_with(close.as_bytes()) => return i + close.len(),
            _ => {}
        }
        i += 1;
    }
    text.len()
}

fn end_of_raw(text: &str, body: usize) -> usize {
    let mut i = body;
    while let Some(start) = text[i..].find("{%") {
        i += start;
        let size = end_of_code(&text[i..], "%}");
        if tag_name(&text[i..i + size]) == Some("endraw") {
            return i + size;
        }
        i += 2;
    }
    text.len()
}

/// The inside of a `{% … %}` tag without its white-space controls.
fn tag_name(construct: &str) -> Option<&str> {
    let inside = construct.strip_prefix("{%")?.strip_suffix("%}")?;
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
    Some(inside.strip_suffix(['-', '+']).unwrap_or(inside).trim())
}

fn replaced_tag(construct: &str) -> Option<String> {
    let (name, code) = match tag_name(construct)? {
        "generation" => ("generation", "call generation_block()"),
        "endgeneration" => ("endgeneration", "endcall"),
        _ => return None,
    };
    Some(construct.replacen(name, code, 1))
}
