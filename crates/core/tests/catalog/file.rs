//! Files, from TOML to what is in force: the scripts in `testdata/catalog` read as documentation.

use crate::book::{Book, account};
use std::fmt::Write;
use tollgate_core::admin::{AdminReply, Change};
use tollgate_core::catalog::{PepperId, SecretMac};
use tollgate_core::file::CatalogFile;
use tollgate_core::ids::Slot;

fn mac(sha256: &[u8; 32]) -> SecretMac {
    SecretMac {
        hmac: *sha256,
        pepper: PepperId(1),
    }
}

fn apply(book: &mut Book, file: &CatalogFile) -> String {
    let items = match file.validate() {
        Ok(items) => items.into_items(mac),
        Err(problems) => return lines(problems),
    };
    match book.change(Change::Apply { items }) {
        AdminReply::Done { changed, .. } => format!("{changed} changed\n"),
        AdminReply::Unchanged { .. } => "unchanged\n".to_owned(),
        AdminReply::Invalid(problems) => format!("by the ledger:\n{}", lines(problems)),
        other => format!("{other:?}\n"),
    }
}

fn lines(what: impl IntoIterator<Item: std::fmt::Display>) -> String {
    what.into_iter().fold(String::new(), |mut text, line| {
        writeln!(text, "{line}").unwrap();
        text
    })
}

fn exported(book: &Book) -> CatalogFile {
    CatalogFile::from_catalog(book.ledger.catalog())
}

#[test]
fn scripts() {
    datadriven::walk("testdata/catalog", |script| {
        let mut book = Book::new();
        script.run(|case| match case.directive.as_str() {
            "apply" => match toml::from_str(&case.input) {
                Ok(file) => apply(&mut book, &file),
                Err(error) => error.to_string(),
            },
            "apply-export" => {
                let file = exported(&book);
                apply(&mut book, &file)
            }
            "export" => toml::to_string(&exported(&book)).unwrap(),
            "slot" => {
                let customer = &case.args["customer"][0];
                let slot = Slot::of(customer);
                let random = [0; tollgate_core::credential::RANDOM_BYTES];
                let environment = tollgate_core::account::Environment::Live;
                let key = tollgate_core::credential::compose(environment, slot, &random).key;
                format!("{customer} is in slot {slot}: {}\n", &key.as_str()[..2])
            }
            "limit" => lines(case.input.lines().map(|line| {
                let limit = book.ledger.limit(&account(line));
                format!(
                    "{line}: {}",
                    limit.map_or("none".to_owned(), |limit| limit.to_string())
                )
            })),
            "principal" => {
                let key = &case.args["key"][0];
                let time = book.ledger.time();
                match book.ledger.catalog().principal(key, time) {
                    Ok(principal) => format!(
                        "{} {} on {} version {}\n{}",
                        principal.customer,
                        principal.license,
                        principal.plan.0,
                        principal.plan.1,
                        lines(
                            principal
                                .limits
                                .iter()
                                .map(|limit| format!("  {} {}", limit.account, limit.quota))
                        )
                    ),
                    Err(refusal) => format!("{refusal}\n"),
                }
            }
            other => panic!("{other} is no directive"),
        });
    });
}

#[test]
fn json_says_the_same() {
    let toml = r#"
        [[plan]]
        id = "free"
          [[plan.limit]]
          name = "calls"
          meter = "requests"
          per = "customer"
          quota = 9_223_372_036_854_775_807
          window = "open"
    "#;
    let file: CatalogFile = toml::from_str(toml).unwrap();
    let json = serde_json::to_string(&file).unwrap();
    let again: CatalogFile = serde_json::from_str(&json).unwrap();
    assert_eq!(again, file);
    assert_eq!(again.validate(), file.validate());
    assert!(file.validate().is_ok());

    let beyond = json.replace("9223372036854775807", "9223372036854775808");
    let beyond: CatalogFile = serde_json::from_str(&beyond).unwrap();
    assert_eq!(
        beyond.validate().unwrap_err()[0].field,
        "plan[0].limit[0].quota"
    );
    let unknown = serde_json::from_str::<CatalogFile>(r#"{"plan":[{"id":"a","limitz":[]}]}"#);
    assert!(
        unknown
            .unwrap_err()
            .to_string()
            .contains("unknown field `limitz`")
    );
    // A value that was refused stays refused on its way through JSON.
    let odd: CatalogFile = toml::from_str("[[customer]]\nid = [1]").unwrap();
    let odd = serde_json::to_string(&odd).unwrap();
    let odd: CatalogFile = serde_json::from_str(&odd).unwrap();
    assert!(odd.validate().is_err());
}

#[test]
fn problems_are_bounded() {
    let many = "[[customer]]\nid = \"no good\"\n".repeat(1000);
    let file: CatalogFile = toml::from_str(&many).unwrap();
    let problems = file.validate().unwrap_err();
    assert_eq!(problems.len(), tollgate_core::catalog::PROBLEMS_MAX);
    let long = format!("[[customer]]\nid = \"{}\\u0007\"\n", "x".repeat(10_000));
    let file: CatalogFile = toml::from_str(&long).unwrap();
    let problem = file.validate().unwrap_err()[0].to_string();
    assert!(
        problem.len() < 1000 && !problem.contains('\u{7}'),
        "{problem}"
    );
}
