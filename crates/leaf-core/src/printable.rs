//! Text for a terminal or a log: control characters and invisible ones are shown as escapes, such as `\u{1b}`.
//!
//! Names of devices, logs of containers and error texts come from outside. Printed unchanged, they could command the
//! terminal of whoever reads them (ECMA-48), reorder a line (Unicode Standard Annex 9) or imitate another one. Everything
//! that a program of cim-leaf prints for people passes through here; JSON and what is stored stay exact.

use std::borrow::Cow;

/// Returns a text of several lines with escapes in place of characters that don't show. Tabs and ends of lines, also
/// those with a carriage return, are kept.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\n' | '\t' => shown.push(c),
            '\r' if rest.peek() == Some(&'\n') => {}
            c => push(&mut shown, c),
        }
    }
    Cow::Owned(shown)
}

/// Returns a text as one line, with escapes in place of characters that don't show, ends of lines and tabs.
#[must_use]
pub fn printable_line(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        push(&mut shown, c);
    }
    Cow::Owned(shown)
}

fn push(shown: &mut String, c: char) {
    if is_hidden(c) {
        shown.extend(c.escape_default());
    } else {
        shown.push(c);
    }
}

/// Returns whether a character has no form of its own: control characters, line and paragraph separators, controls of
/// the writing direction, zero-width spaces, annotations and tags. The joiners U+200C and U+200D are not among them:
/// scripts and emoji need them.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{feff}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_command_a_terminal_are_shown_as_escapes() {
        for (text, shown) in [
            ("\u{1b}]52;c;cm0gLXJm\u{7}", r"\u{1b}]52;c;cm0gLXJm\u{7}"),
            ("\u{1b}]0;title\u{1b}\\", r"\u{1b}]0;title\u{1b}\"),
            ("\u{9b}31m\u{9d}0;t\u{9c}", r"\u{9b}31m\u{9d}0;t\u{9c}"),
            ("safe\rrm -rf", r"safe\rrm -rf"),
            ("\u{8}\u{7f}\0\u{b}\u{c}", r"\u{8}\u{7f}\u{0}\u{b}\u{c}"),
            ("a\u{202e}cod.exe\u{202c}", r"a\u{202e}cod.exe\u{202c}"),
            (
                "\u{2066}a\u{2069}\u{200f}\u{61c}",
                r"\u{2066}a\u{2069}\u{200f}\u{61c}",
            ),
            (
                "\u{200b}\u{feff}\u{2028}\u{e0041}",
                r"\u{200b}\u{feff}\u{2028}\u{e0041}",
            ),
        ] {
            assert_eq!(printable(text), shown);
            assert_eq!(printable_line(text), shown);
        }
    }

    #[test]
    fn ends_of_lines_are_kept_in_a_text_and_escaped_in_a_line() {
        let text = "a\tb\r\nc\nd\r";
        assert_eq!(printable(text), "a\tb\nc\nd\\r");
        assert_eq!(printable_line(text), r"a\tb\r\nc\nd\r");
    }

    #[test]
    fn letters_of_every_script_are_unchanged() {
        for text in [
            "",
            "Größe 10 µm",
            "שלום",
            "می\u{200c}خواهم",
            "👩\u{200d}🔧",
            "日本語",
            r"C:\new \u{1b}",
        ] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text));
            assert!(matches!(printable_line(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn a_printable_text_is_unchanged_by_a_second_pass() {
        let once = printable("\u{1b}[2J\r\n\u{202e}x").into_owned();
        assert_eq!(printable(&once), once);
    }
}
