// SPDX-License-Identifier: Apache-2.0
//! The C face of one minijinja template in an environment like transformers' ImmutableSandboxedEnvironment.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{escape_formatter, Environment, Error, ErrorKind, State, Value};

use crate::generation::replace_generation_tags;
use crate::{guarded, python, silence_panics, text, Buffer, Failure, Outcome};

const NAME: &str = "chat_template";
/// A context key that no template can spell: the two characters that mark a generation block.
const MARKS: &str = "generation marks";
/// Marks an error as the template's own, raised on purpose.
const RAISED: &str = "raise_exception: ";

/// Instructions, and 64 bytes each of data made, that one rendering may take: about half a second and 0.3 GB. A chat of
/// a thousand messages stays below; a template that never ends or grows without bound stops here.
const FUEL: u64 = 5_000_000;

/// Bytes of a template. The longest known have 30 thousand.
const LONGEST: usize = 1_000_000;

pub struct ChatTemplate {
    environment: Environment<'static>,
    marks_generation: bool,
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

/// The body of a generation block, between the two marks if the caller of render asked for them.
fn generation_block(state: &mut State, arguments: Kwargs) -> Result<String, Error> {
    let caller: Value = arguments.get("caller")?;
    let body = caller.call(state, &[])?.to_string();
    let marks = state.lookup(MARKS).unwrap_or_default();
    let mut marks = marks.as_str().unwrap_or_default().chars();
    Ok(match (marks.next(), marks.next()) {
        (Some(begin), Some(end)) => format!("{begin}{body}{end}"),
        _ => body,
    })
}

/// Jinja's test is Python's: a str has `__iter__` and `__getitem__`.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
}

fn build(source: &str, date: &str) -> Result<ChatTemplate, Error> {
    if source.len() > LONGEST {
        let detail = format!("{} bytes are more than the {LONGEST} that a template may have", source.len());
        return Err(Error::new(ErrorKind::SyntaxError, detail));
    }
    let date = python::Date::parse(date)?;
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(|out, state, value| match python::float_text(value) {
        Some(text) => escape_formatter(out, state, &text.into()),
        None => escape_formatter(out, state, value),
    });
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| date.strftime(format));
    environment.add_function("generation_block", generation_block);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("trim", python::trim);
    environment.add_filter("string", python::string);
    environment.add_test("sequence", is_sequence);
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let (source, marks_generation) = replace_generation_tags(&source);
    environment.add_template_owned(NAME, source)?;
    Ok(ChatTemplate { environment, marks_generation })
}

/// What went wrong in words, with the line; the causes of an error in order.
fn describe(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return "it does not come to an end, or its text grows without bound".into();
    }
    let mut message = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    if let Some(line) = error.line() {
        message += &format!(" (line {line})");
    }
    message
}

/// The words given to raise_exception, wherever in the chain of causes they are.
fn raised(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(words) =
            current.downcast_ref::<Error>().and_then(Error::detail).and_then(|detail| detail.strip_prefix(RAISED))
        {
            return Some(words.to_string());
        }
        cause = current.source();
    }
    None
}

fn render(template: &ChatTemplate, context: &str, marks: &str) -> Outcome<String> {
    let mut context: serde_json::Value = serde_json::from_str(context)?;
    let variables = context.as_object_mut().ok_or_else(|| Failure::new("the context is not a JSON object"))?;
    variables.insert(MARKS.into(), marks.into());
    template.environment.get_template(NAME).and_then(|compiled| compiled.render(Value::from(Serde(&context)))).map_err(
        |error| match raised(&error) {
            Some(words) => Failure::raised(words),
            None => Failure::new(describe(&error)),
        },
    )
}

/// # Safety
/// See the header; the pointers are valid for the call.
#[no_mangle]
pub unsafe extern "C" fn fettle_template_new(
    source: *const u8,
    source_size: usize,
    date: *const u8,
    date_size: usize,
    out: *mut *mut ChatTemplate,
    error: *mut Buffer,
) -> i32 {
    silence_panics();
    guarded(error, || {
        let template = build(text(source, source_size)?, text(date, date_size)?)
            .map_err(|error| Failure::new(describe(&error)))?;
        *out = Box::into_raw(Box::new(template));
        Ok(())
    })
}

/// # Safety
/// `template` is null or a live handle, used by nobody else.
#[no_mangle]
pub unsafe extern "C" fn fettle_template_free(template: *mut ChatTemplate) {
    if !template.is_null() {
        drop(Box::from_raw(template));
    }
}

/// # Safety
/// `template` is a live handle.
#[no_mangle]
pub unsafe extern "C" fn fettle_template_marks_generation(template: *const ChatTemplate) -> i32 {
    i32::from((*template).marks_generation)
}

/// # Safety
/// `template` is a live handle; `out` is writable.
#[no_mangle]
pub unsafe extern "C" fn fettle_template_render(
    template: *const ChatTemplate,
    context: *const u8,
    context_size: usize,
    marks: *const u8,
    marks_size: usize,
    out: *mut Buffer,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        let rendered = render(&*template, text(context, context_size)?, text(marks, marks_size)?)?;
        *out = Buffer::from_vec(rendered.into_bytes());
        Ok(())
    })
}
