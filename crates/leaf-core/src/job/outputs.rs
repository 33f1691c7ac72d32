//! Chosen outputs of a derivation, as Nix writes them behind `^`.

/// Splits the chosen outputs from an installable with an attribute: `hello^out,dev` into `hello` and `out,dev`. A text
/// whose end is no choice of outputs has none.
#[must_use]
pub fn split(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once('^') {
        Some((attribute, outputs)) if are_valid(outputs) => (attribute, Some(outputs)),
        _ => (text, None),
    }
}

/// Returns whether a text chooses outputs: `*`, or names with commas between them.
pub(super) fn are_valid(outputs: &str) -> bool {
    outputs == "*" || outputs.split(',').all(is_name)
}

/// Returns whether an output can have this name: it is a part of the name of a store path.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(['-', '.'])
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_split_from_an_attribute_as_nix_does() {
        for (text, attribute, outputs) in [
            ("a^dev", "a", Some("dev")),
            ("x#a.b^out,dev", "x#a.b", Some("out,dev")),
            ("x^*", "x", Some("*")),
            ("a", "a", None),
            ("a^", "a^", None),
            ("a^-x", "a^-x", None),
            ("a^out,", "a^out,", None),
            ("a^$(id)", "a^$(id)", None),
        ] {
            assert_eq!(split(text), (attribute, outputs), "{text}");
        }
    }
}
