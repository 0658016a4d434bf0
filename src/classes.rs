//! Class names: written in one way, so that two of them are one name exactly when their bytes are equal.

use unicode_normalization::UnicodeNormalization;

/// A name without white space around it, in Unicode's composed form (NFC): `café` may reach us from a Mac as five letters
/// and an accent.
pub fn canonical(name: &str) -> String {
    name.trim().nfc().collect()
}

/// The names of a model or a data set, each in its [`canonical`] form.
///
/// # Errors
/// One sentence if a name is empty or stands twice.
pub fn checked<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Vec<String>, String> {
    let names: Vec<String> = names.into_iter().map(|name| canonical(name.as_ref())).collect();
    let mut seen = std::collections::HashMap::new();
    for (index, name) in names.iter().enumerate() {
        if name.is_empty() {
            return Err(format!("class {index} has an empty name, but every class needs one of its own"));
        }
        if let Some(first) = seen.insert(name, index) {
            return Err(format!(
                "classes {first} and {index} are both `{name}`, but every class needs a name of its own"
            ));
        }
    }
    Ok(names)
}

/// Names for classes that nobody has named: their numbers.
pub fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|class| class.to_string()).collect()
}

/// By class of `ours`, in canonical form, the number that `theirs` wants in its place: the same names in another order.
///
/// # Errors
/// One sentence with both lists if they are not the same names.
pub fn matched(ours: &[String], theirs: &[String]) -> Result<Vec<usize>, String> {
    let place = |name: &String| theirs.iter().position(|other| other == name);
    let places: Option<Vec<usize>> = ours.iter().map(place).collect();
    places.filter(|places| places.len() == theirs.len()).ok_or_else(|| {
        let unnamed = !theirs.is_empty() && *theirs == numbers(theirs.len());
        let hint = if unnamed { "; name them in its model.toml (`classes`) or by `import --classes`" } else { "" };
        format!("has the classes {}, but the model's are {}{hint}", ours.join(", "), theirs.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_name_is_the_same_however_its_accents_are_encoded_and_whatever_surrounds_it() {
        assert_eq!(checked([" cafe\u{301}\n", "thé"]), Ok(owned(&["caf\u{e9}", "thé"])));
    }

    #[test]
    fn empty_and_equal_names_are_refused() {
        assert_eq!(checked(["a", " "]).unwrap_err(), "class 1 has an empty name, but every class needs one of its own");
        assert_eq!(
            checked(["cafe\u{301}", "b", "caf\u{e9} "]).unwrap_err(),
            "classes 0 and 2 are both `caf\u{e9}`, but every class needs a name of its own"
        );
    }

    #[test]
    fn names_are_matched_in_any_order_and_refused_with_both_lists_where_they_differ() {
        let matched = |ours: &[&str], theirs: &[&str]| matched(&owned(ours), &owned(theirs));
        assert_eq!(matched(&["bag", "coat", "dress"], &["dress", "bag", "coat"]), Ok(vec![1, 2, 0]));
        let refusal = "has the classes bag, coat, but the model's are bag, dress";
        assert_eq!(matched(&["bag", "coat"], &["bag", "dress"]).unwrap_err(), refusal);
        let refusal = "has the classes bag, but the model's are bag, dress";
        assert_eq!(matched(&["bag"], &["bag", "dress"]).unwrap_err(), refusal);
        assert!(matched(&["bag", "coat"], &["bag"]).is_err());
        assert_eq!(
            matched(&["bag", "coat"], &["0", "1"]).unwrap_err(),
            "has the classes bag, coat, but the model's are 0, 1; name them in its model.toml (`classes`) or by `import \
             --classes`"
        );
        assert_eq!(matched(&["0", "1"], &["0", "1"]), Ok(vec![0, 1]));
    }
}
