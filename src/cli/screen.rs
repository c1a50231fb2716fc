//! Where progress is written: a picture that is drawn again on a terminal, lines where there is none.

use std::io::{IsTerminal, Write};

use super::view::Paint;

/// Standard output.
#[derive(Debug)]
pub struct Screen {
    terminal: bool,
    silent: bool,
    paint: Paint,
    /// Lines of the picture that stands at the bottom now.
    drawn: usize,
}

/// Lines of a picture at the most, so that it fits a small terminal.
const PICTURE_MAX: usize = 22;

impl Screen {
    /// Standard output as it is; `plain` takes it for no terminal.
    #[must_use]
    pub fn new(plain: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let terminal = !plain && !dumb && std::io::stdout().is_terminal();
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { terminal, silent: false, paint: Paint(colours), drawn: 0 }
    }

    /// One that shows nothing.
    #[must_use]
    pub const fn silent() -> Self {
        Self { terminal: false, silent: true, paint: Paint(false), drawn: 0 }
    }

    /// Whether pictures are drawn.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// The colours there are.
    #[must_use]
    pub const fn paint(&self) -> Paint {
        self.paint
    }

    /// A line that stays. A picture that stands at the bottom goes down by it when drawn next.
    pub fn line(&mut self, text: &str) {
        if self.silent {
            return;
        }
        let erase = self.erase();
        put(&format!("{erase}{text}\n"));
    }

    /// Draws the picture in place of the one before.
    pub fn picture(&mut self, lines: &[String]) {
        let up = std::mem::take(&mut self.drawn);
        // Written over what stands there, not erased before: that would flicker. Without wrapping, a
        // line is one line whatever the width.
        let mut text = if up > 0 { format!("\x1b[{up}A\x1b[?7l") } else { "\x1b[?7l".to_owned() };
        let shown = &lines[lines.len().saturating_sub(PICTURE_MAX)..];
        for line in shown {
            text.push_str(line);
            text.push_str("\x1b[K\n");
        }
        text.push_str("\x1b[J\x1b[?7h");
        self.drawn = shown.len();
        put(&text);
    }

    /// Leaves the picture where it is; what follows goes below.
    pub const fn keep(&mut self) {
        self.drawn = 0;
    }

    fn erase(&mut self) -> String {
        let up = std::mem::take(&mut self.drawn);
        if up > 0 { format!("\x1b[{up}A\x1b[J") } else { String::new() }
    }
}

/// A closed pipe must not end the demo before it has cleaned up.
fn put(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}
