//! Names of classes, compared as people mean them: `T‑Shirt`, `t shirt` and `ｔ＿ｓｈｉｒｔ` are all `t-shirt`.

use unicase::UniCase;
use unicode_normalization::UnicodeNormalization;

/// The index of the class that `asked` means: the one of exactly this name, else the only one whose name reads the same,
/// else the one of this number.
pub(crate) fn find(names: &[String], asked: &str) -> Option<usize> {
    let exactly = names.iter().position(|name| name == asked);
    let number = || asked.parse().ok().filter(|&number: &usize| number < names.len());
    exactly.or_else(|| only_alike(names, asked)).or_else(number)
}

fn only_alike(names: &[String], asked: &str) -> Option<usize> {
    let asked = folded(asked);
    let mut alike = names.iter().enumerate().filter(|(_, name)| !asked.is_empty() && folded(name) == asked);
    alike.next().filter(|_| alike.next().is_none()).map(|(index, _)| index)
}

/// What all spellings of a name have in common: [`spelled`], with a space for every separator.
pub(crate) fn folded(name: &str) -> String {
    spelled(name).replace('-', " ")
}

/// `text` without what only its spelling says: compatibility forms are normalised (NFKC, so that NFC and NFD are alike),
/// case is folded, and characters that nobody sees are left out. A run of separators (any dash, underscore or white space)
/// is one `-` where it makes a compound of the words beside it, and else one space; at the ends there is none.
pub(crate) fn spelled(text: &str) -> String {
    let seen: String = text.chars().filter(|&c| !is_invisible(c)).nfkc().collect();
    let mut spelled = String::new();
    let mut run = None;
    // Folding can take the normal form away: U+0390 becomes three characters.
    for c in UniCase::unicode(seen).to_folded_case().nfkc() {
        match separator(c) {
            Some(separator) => run = if run == Some(' ') { run } else { Some(separator) },
            None => {
                spelled.extend(run.take().filter(|_| !spelled.is_empty()));
                spelled.push(c);
            }
        }
    }
    spelled
}

/// What a run with `c` in it is: a `-` joins the words beside it to a compound, a space parts them. Dashes that are not
/// listed become one of these by NFKC.
fn separator(c: char) -> Option<char> {
    match c {
        // The dash and the bar are punctuation between words, and as white space part them.
        '\u{2014}' | '\u{2015}' | '\u{2e3a}' | '\u{2e3b}' => Some(' '),
        c if c.is_whitespace() => Some(' '),
        // The other characters of Unicode's property Dash, the hyphen bullet and the underscore.
        '-'
        | '_'
        | '\u{58a}'
        | '\u{5be}'
        | '\u{1400}'
        | '\u{1806}'
        | '\u{2010}'..='\u{2013}'
        | '\u{2043}'
        | '\u{2053}'
        | '\u{2212}'
        | '\u{2e17}'
        | '\u{2e1a}'
        | '\u{2e40}'
        | '\u{2e5d}'
        | '\u{301c}'
        | '\u{3030}'
        | '\u{30a0}'
        | '\u{10d6e}'
        | '\u{10ead}' => Some('-'),
        _ => None,
    }
}

/// Whether nothing of `c` is seen: soft hyphens, joiners and non-joiners, marks of direction, selectors of variants.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{e0100}'..='\u{e01ef}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn every_spelling_of_a_name_reads_the_same() {
        for (name, spellings) in [
            (
                "t-shirt",
                &[
                    "T-SHIRT",
                    "t\u{2010}shirt",
                    "T\u{2011}Shirt",
                    "t\u{2012}shirt",
                    "t\u{2013}shirt",
                    "t\u{2014}shirt",
                    "t\u{2212}shirt",
                    "t\u{fe63}shirt",
                    "ｔ－ｓｈｉｒｔ",
                    "t shirt",
                    "t\u{a0}shirt",
                    "t \t\n shirt",
                    "t\u{3000}shirt",
                    "t_shirt",
                    "t - shirt",
                    " t-shirt ",
                    "t\u{2060}-shi\u{ad}rt\u{feff}",
                ][..],
            ),
            ("café", &["cafe\u{301}", "CAFÉ", "CAFE\u{301}"]),
            ("Straße", &["STRASSE", "strasse"]),
            ("ΟΔΟΣ", &["οδος", "οδοσ"]),
            ("office", &["o\u{fb03}ce"]),
        ] {
            for spelling in spellings {
                assert_eq!(folded(spelling), folded(name), "{spelling:?}");
            }
        }
        for other in ["tshirt", "t.shirt", "shirt", "t-shirts", "ť-shirt"] {
            assert_ne!(folded(other), folded("t-shirt"), "{other}");
        }
    }

    #[test]
    fn a_hyphen_makes_a_compound_and_a_dash_or_a_space_does_not() {
        for (text, spelled_so) in [
            ("bag-pipe", "bag-pipe"),
            ("bag__pipe", "bag-pipe"),
            ("bag pipe", "bag pipe"),
            ("bag - pipe", "bag pipe"),
            ("bag\u{2014}pipe", "bag pipe"),
            ("- bag -", "bag"),
        ] {
            assert_eq!(spelled(text), spelled_so, "{text:?}");
        }
    }

    #[test]
    fn a_class_is_found_by_its_name_then_by_its_spelling_then_by_its_number() {
        let classes = names(&["t-shirt", "2", "BAG", "bag", "T SHIRTS", "-"]);
        for (asked, index) in [
            ("t-shirt", Some(0)),
            ("T_Shirt", Some(0)),
            ("2", Some(1)),
            ("3", Some(3)),
            ("BAG", Some(2)),
            ("bag", Some(3)),
            ("Bag", None),
            ("t-shirts", Some(4)),
            ("-", Some(5)),
            ("", None),
            ("6", None),
            ("shirt", None),
        ] {
            assert_eq!(find(&classes, asked), index, "{asked}");
        }
    }

    proptest! {
        #[test]
        fn what_is_folded_folds_to_itself_and_normal_forms_are_alike(text in "\\PC{0,12}") {
            let once = folded(&text);
            prop_assert_eq!(folded(&once), once.clone());
            prop_assert_eq!(folded(&text.nfc().collect::<String>()), once.clone());
            prop_assert_eq!(folded(&text.nfd().collect::<String>()), once);
        }
    }
}
