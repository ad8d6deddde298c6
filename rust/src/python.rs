// SPDX-License-Identifier: Apache-2.0
//! What chat templates expect of Python where minijinja differs: json.dumps, str.strip, time.strftime.

use std::fmt::Write as _;

use minijinja::value::{from_args, Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, as transformers' `tojson`.
pub fn tojson(value: &Value, indent: Option<Value>, arguments: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => arguments.get::<Option<Value>>("indent")?,
    };
    let indent = match indent {
        Some(indent) if !indent.is_none() => Some(indent_text(&indent)?),
        _ => None,
    };
    let separators = arguments.get::<Option<Vec<String>>>("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: separators must be two strings")),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let mut writer = JsonWriter {
        out: String::new(),
        indent,
        item,
        key,
        ensure_ascii: arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    arguments.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(writer.out)
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

fn indent_text(indent: &Value) -> Result<String, Error> {
    match indent.as_str() {
        Some(text) => Ok(text.to_string()),
        None => indent
            .as_usize()
            .filter(|&count| count <= 64)
            .map(|count| " ".repeat(count))
            .ok_or_else(|| invalid("tojson: indent must be a string or a number up to 64")),
    }
}

struct JsonWriter {
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl JsonWriter {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > 200 {
            return Err(invalid("tojson: nested too deeply"));
        }
        match value.kind() {
            ValueKind::None | ValueKind::Bool => {
                let text = if value.is_none() {
                    "null"
                } else if value.is_true() {
                    "true"
                } else {
                    "false"
                };
                self.out.push_str(text);
            }
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => self.out.push_str(&float_repr(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Map => self.map(value, depth)?,
            ValueKind::Seq | ValueKind::Iterable => self.sequence(value, depth)?,
            kind => return Err(invalid(format!("Object of type {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn sequence(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('[');
        let mut empty = true;
        for item in value.try_iter()? {
            self.separate(&mut empty, depth + 1);
            self.value(&item, depth + 1)?;
        }
        self.close(empty, depth, ']');
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        self.out.push('{');
        let mut empty = true;
        for key in keys {
            self.separate(&mut empty, depth + 1);
            match key.as_str() {
                Some(text) => self.string(text),
                None => {
                    let text = key.to_string();
                    self.string(&text);
                }
            }
            self.out.push_str(&self.key.clone());
            self.value(&value.get_item(&key)?, depth + 1)?;
        }
        self.close(empty, depth, '}');
        Ok(())
    }

    fn separate(&mut self, empty: &mut bool, depth: usize) {
        if !*empty {
            self.out.push_str(&self.item);
        }
        *empty = false;
        self.new_line(depth);
    }

    fn close(&mut self, empty: bool, depth: usize, bracket: char) {
        if !empty {
            self.new_line(depth);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\u{1f}' => self.escape(character),
                // What stands for a special token's spelling (src/text/stand_ins.h) must be found again.
                '\u{f0000}'..='\u{ffffd}' => self.out.push(character),
                _ if self.ensure_ascii && !(' '..='~').contains(&character) => {
                    self.escape(character);
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a String cannot fail.
            let _ = write!(self.out, "\\u{unit:04x}");
        }
    }
}

/// `str(value)` if it is a float, which minijinja writes without exponents.
pub fn float_text(value: &Value) -> Option<String> {
    if value.kind() != ValueKind::Number || value.is_integer() {
        return None;
    }
    let number = f64::try_from(value.clone()).ok()?;
    Some(if number.is_finite() { float_repr(number) } else { number.to_string().to_lowercase() })
}

/// `str(value)`, the filter.
pub fn string(state: &State, value: &Value) -> Result<Value, Error> {
    match float_text(value) {
        Some(text) => Ok(text.into()),
        None => minijinja::filters::string(state, value),
    }
}

/// `repr(float)`: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = value.to_string();
    if text.contains('.') {
        text
    } else {
        text + ".0"
    }
}

/// Characters that `str.strip()` removes: Unicode white space and the four ASCII separators.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// `str.strip(chars=None)`, the filter.
pub fn trim(value: &Value, chars: Option<&str>) -> String {
    let text = value.to_string();
    match chars {
        None => text.trim_matches(is_space).to_string(),
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_string(),
    }
}

/// `str.title()`: a letter after anything that is no letter begins a word.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for character in text.chars() {
        if in_word {
            out.extend(character.to_lowercase());
        } else {
            out.extend(character.to_uppercase());
        }
        in_word = character.is_alphabetic();
    }
    out
}

/// Python's methods of str, dict and list: ours where minijinja-contrib lacks or misses one, else its own.
pub fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match (name, arguments.is_empty()) {
            ("strip", true) => return Ok(text.trim_matches(is_space).into()),
            ("lstrip", true) => return Ok(text.trim_start_matches(is_space).into()),
            ("rstrip", true) => return Ok(text.trim_end_matches(is_space).into()),
            ("title", true) => return Ok(title(text).into()),
            ("removeprefix", _) => {
                let (prefix,): (&str,) = from_args(arguments)?;
                return Ok(text.strip_prefix(prefix).unwrap_or(text).into());
            }
            ("removesuffix", _) => {
                let (suffix,): (&str,) = from_args(arguments)?;
                return Ok(text.strip_suffix(suffix).unwrap_or(text).into());
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

/// What `strftime_now` says it is: a moment, or the time of each call.
pub struct Date(Option<libc::time_t>);

impl Date {
    /// Local midnight of YYYY-MM-DD; the time of the call if empty.
    pub fn parse(text: &str) -> Result<Date, Error> {
        if text.is_empty() {
            return Ok(Date(None));
        }
        let numbers: Vec<i32> = text.split('-').filter_map(|part| part.parse().ok()).collect();
        let [year, month, day] = numbers[..] else {
            return Err(invalid(format!("the date '{text}' is not YYYY-MM-DD")));
        };
        // SAFETY: tm is plain data; mktime reads and normalizes it.
        let moment = unsafe {
            let mut parts: libc::tm = std::mem::zeroed();
            (parts.tm_year, parts.tm_mon, parts.tm_mday, parts.tm_isdst) = (year - 1900, month - 1, day, -1);
            libc::mktime(&mut parts)
        };
        Ok(Date(Some(moment)))
    }

    /// `datetime.now().strftime(format)`.
    pub fn strftime(&self, format: &str) -> Result<String, Error> {
        // strftime answers 0 both for "too long" and for an empty result: a leading character tells them apart.
        let format = std::ffi::CString::new(format!("x{format}"))
            .map_err(|_| invalid("strftime_now: the format has a zero byte"))?;
        let mut out = [0u8; 512];
        // SAFETY: tm is plain data that localtime_r fills; strftime writes at most out.len() bytes and ends them with
        // 0.
        let size = unsafe {
            let moment = self.0.unwrap_or_else(|| libc::time(std::ptr::null_mut()));
            let mut parts: libc::tm = std::mem::zeroed();
            libc::localtime_r(&moment, &mut parts);
            libc::strftime(out.as_mut_ptr().cast(), out.len(), format.as_ptr(), &parts)
        };
        if size == 0 {
            return Err(invalid("strftime_now: the format is too long"));
        }
        Ok(String::from_utf8_lossy(&out[1..size]).into_owned())
    }
}
