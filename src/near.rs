//! The known names nearest to one that was mistyped.

/// Names that are offered at the most.
const OFFERED_MAX: usize = 3;

/// Those with the fewest edits, regardless of case: two at most, or a third of the longer name, and
/// never all of it.
#[must_use]
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let name = name.to_lowercase();
    let length = name.chars().count();
    let mut near: Vec<(usize, &str)> = known
        .into_iter()
        .filter_map(|known| {
            let longer = length.max(known.chars().count());
            let edits = strsim::damerau_levenshtein(&name, &known.to_lowercase());
            (edits <= 2.max(longer / 3) && edits < longer).then_some((edits, known))
        })
        .collect();
    near.sort_unstable();
    near.dedup();
    let fewest = near.first().map(|(edits, _)| *edits);
    near.into_iter().filter(|(edits, _)| Some(*edits) == fewest).take(OFFERED_MAX).map(|(_, known)| known).collect()
}

/// `; did you mean …?` for the end of a message; empty where nothing is near.
#[must_use]
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near: Vec<_> = nearest(name, known).into_iter().map(|known| format!("`{known}`")).collect();
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_offered_and_far_ones_are_not() {
        assert_eq!(did_you_mean("helo", ["hello", "world", "help"]), "; did you mean `hello`, `help`?");
        assert_eq!(did_you_mean("CONTNUE", ["stop", "continue"]), "; did you mean `continue`?");
        assert_eq!(did_you_mean("wiat", ["wait", "want", "waits"]), "; did you mean `wait`?", "the nearest only");
        assert_eq!(did_you_mean("healthChek", ["healthCheck", "health"]), "; did you mean `healthCheck`?");
        assert_eq!(did_you_mean("retentoinDay", ["retentionDays"]), "; did you mean `retentionDays`?");
        assert_eq!(did_you_mean("zzzz", ["hello", "world"]), "");
        assert_eq!(did_you_mean("x", ["in", "y"]), "", "nothing in common");
        assert_eq!(did_you_mean("", ["a", "no"]), "");
        assert_eq!(nearest("shp", ["shop", "shop", "ship", "shap", "shup"]), ["shap", "ship", "shop"]);
        assert_eq!(nearest("größe", ["grösse"]), ["grösse"]);
    }
}
