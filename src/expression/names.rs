//! Which names an expression reads, as far as its text alone can say: for a check before anything
//! is evaluated. What hangs on values (`parameters[x]`), and what may be absent by the
//! expression's own word (`is defined`, `default(…)`, `in`), is not told.

use std::iter::Peekable;
use std::str::Chars;

/// One access whose names all stand in the text: `stages.build.outputs`, `stages['build'].outputs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Its names, the variable's first.
    path: Vec<String>,
    /// As it stands in the text, up to each name.
    shown: Vec<String>,
    /// From this name on the expression itself asks whether it is there.
    asked: usize,
}

impl Reading {
    /// The name at that place, where it has to be there; the variable's is at 0.
    #[must_use]
    pub fn wanted(&self, place: usize) -> Option<&str> {
        self.path.get(place).filter(|_| place < self.asked).map(String::as_str)
    }

    /// The access up to the name at that place, as it stands in the text: `stages['build']`.
    #[must_use]
    pub fn up_to(&self, place: usize) -> &str {
        self.shown.get(place).map_or("", String::as_str)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Name(String),
    /// A literal; None where it has escapes.
    Text(Option<String>),
    Other(char),
}

/// All that the expression reads below its variables; empty where its text cannot say.
pub(super) fn readings(source: &str) -> Vec<Reading> {
    let tokens = tokens(source);
    let name = |at: usize| match tokens.get(at) {
        Some(Token::Name(name)) => Some(name.as_str()),
        _ => None,
    };
    let sign = |at: usize| match tokens.get(at) {
        Some(Token::Other(sign)) => Some(*sign),
        _ => None,
    };
    let before = |at: usize, sign_before: char| at > 0 && sign(at - 1) == Some(sign_before);
    let is_test = |at: usize| {
        let at = if at > 0 && name(at - 1) == Some("not") { at - 1 } else { at };
        at > 0 && name(at - 1) == Some("is")
    };
    // Each access with the place behind its end.
    let mut found: Vec<(Reading, usize)> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let is_argument = sign(at + 1) == Some('=') && sign(at + 2) != Some('=');
        let root = name(at).filter(|root| !WORDS.contains(root) && !is_argument && !is_test(at));
        let Some(root) = root.filter(|_| !before(at, '.') && !before(at, '|')) else {
            at += 1;
            continue;
        };
        let mut shown = root.to_owned();
        let mut reading = Reading { path: vec![shown.clone()], shown: vec![shown.clone()], asked: usize::MAX };
        at += 1;
        loop {
            if sign(at) == Some('.')
                && let Some(below) = name(at + 1)
                // A call of what is there, if it is: not a name of ours.
                && sign(at + 2) != Some('(')
            {
                shown.push('.');
                shown.push_str(below);
                reading.path.push(below.to_owned());
                at += 2;
            } else if let (Some('['), Some(Token::Text(Some(below))), Some(']')) =
                (sign(at), tokens.get(at + 1), sign(at + 2))
            {
                shown.push_str(&format!("['{below}']"));
                reading.path.push(below.clone());
                at += 3;
            } else {
                break;
            }
            reading.shown.push(shown.clone());
        }
        found.push((reading, at));
    }
    // What the expression asks about: the access that ends right before the question.
    let mut asked: Vec<Vec<String>> = Vec::new();
    for at in 0..tokens.len() {
        let asks = match name(at) {
            Some("is") => true,
            Some("default" | "d") => before(at, '|'),
            // `'x' in parameters` asks as well, by a name that stands elsewhere.
            Some("in") => return Vec::new(),
            _ => false,
        };
        if !asks {
            continue;
        }
        let end = if name(at) == Some("is") { at } else { at - 1 };
        match found.iter().find(|(_, behind)| *behind == end) {
            Some((reading, _)) => asked.push(reading.path.clone()),
            // Asked about something that is put together: it may be any of the names.
            None => return Vec::new(),
        }
    }
    let mut readings: Vec<Reading> = found.into_iter().map(|(reading, _)| reading).collect();
    for reading in &mut readings {
        let about = asked.iter().filter(|asked| reading.path.starts_with(asked));
        reading.asked = about.map(|asked| asked.len() - 1).min().unwrap_or(reading.asked);
    }
    readings
}

/// Words of the language that stand where a name could.
const WORDS: &[&str] =
    &["and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "True", "False", "None"];

fn tokens(source: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = source.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            _ if char.is_whitespace() => {}
            '\'' | '"' => tokens.push(Token::Text(literal(&mut chars, char))),
            _ if char.is_alphanumeric() || char == '_' => {
                let mut name = String::from(char);
                while let Some(next) = chars.next_if(|next| next.is_alphanumeric() || *next == '_') {
                    name.push(next);
                }
                tokens.push(if char.is_numeric() { Token::Other('0') } else { Token::Name(name) });
            }
            other => tokens.push(Token::Other(other)),
        }
    }
    tokens
}

fn literal(chars: &mut Peekable<Chars<'_>>, quote: char) -> Option<String> {
    let (mut text, mut plain) = (String::new(), true);
    while let Some(char) = chars.next() {
        match char {
            '\\' => {
                plain = false;
                chars.next();
            }
            _ if char == quote => break,
            _ => text.push(char),
        }
    }
    plain.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What has to be there, by the names that stand in the text.
    fn wanted(source: &str) -> Vec<String> {
        let readings = readings(source);
        let wanted = |reading: &Reading| (0..).map_while(|place| reading.wanted(place)).collect::<Vec<_>>().join("/");
        readings.iter().map(wanted).collect()
    }

    #[test]
    fn names_are_found_where_they_stand() {
        for (source, expected) in [
            ("parameters.size", vec!["parameters/size"]),
            (" parameters . size+1", vec!["parameters/size"]),
            ("parameters['my-size']", vec!["parameters/my-size"]),
            ("stages[\"a-b\"].outputs.x[0].y", vec!["stages/a-b/outputs/x"]),
            ("stages.a.outputs['x'] ~ parameters.y", vec!["stages/a/outputs/x", "parameters/y"]),
            ("trigger.parameters.version", vec!["trigger/parameters/version"]),
            ("'parameters.x' ~ \"stages.y\"", vec![]),
            ("parameters.size|upper", vec!["parameters/size"]),
            ("dict(parameters=1, b=parameters.c)", vec!["dict", "parameters/c"]),
            ("{'parameters': parameters.a}.parameters", vec!["parameters/a"]),
            ("1 if parameters.a == 'x' else parameters.b", vec!["parameters/a", "parameters/b"]),
            ("[parameters.a, not parameters.b, 1.5]", vec!["parameters/a", "parameters/b"]),
            ("parameters.list[1:2]", vec!["parameters/list"]),
            ("true and none == parameters.a", vec!["parameters/a"]),
        ] {
            assert_eq!(wanted(source), expected, "{source}");
        }
        let shown = &readings("stages['a-b'] . outputs")[0];
        assert_eq!((shown.up_to(1), shown.up_to(2)), ("stages['a-b']", "stages['a-b'].outputs"));
    }

    #[test]
    fn what_the_text_cannot_say_or_asks_about_is_not_wanted() {
        for (source, expected) in [
            ("parameters[parameters.which]", vec!["parameters", "parameters/which"]),
            ("parameters['a' ~ 'b'].c", vec!["parameters"]),
            ("parameters['a\\x62']", vec!["parameters"]),
            ("parameters.items()", vec!["parameters"]),
            ("parameters.a|default('x')", vec!["parameters"]),
            ("parameters.a | d('x') ~ parameters.b", vec!["parameters", "parameters/b"]),
            (
                "parameters.a if parameters.a is defined else parameters.b",
                vec!["parameters", "parameters", "parameters/b"],
            ),
            ("parameters.a.b if parameters.a is not undefined else 1", vec!["parameters", "parameters"]),
            ("parameters['a'] is defined", vec!["parameters"]),
            // Only what is asked about may be absent, not what it stands in.
            ("stages.a.outputs.x|default(1)", vec!["stages/a/outputs"]),
            ("stages.a.outputs.x.y is defined", vec!["stages/a/outputs/x"]),
            ("stages.a is defined and stages.a.outputs.x", vec!["stages", "stages"]),
            // About something put together, or by a name elsewhere: any of them.
            ("(parameters.a)|default(parameters.b)", vec![]),
            ("parameters.a|upper|default('x')", vec![]),
            ("'a' in parameters and parameters.a", vec![]),
            ("nothing is defined and nothing.at.all", vec!["", ""]),
        ] {
            assert_eq!(wanted(source), expected, "{source}");
        }
    }
}
