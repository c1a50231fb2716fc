//! The operations of the client examples fit the schema.

use std::path::Path;

use async_graphql::Variables;

use crate::api::{Limits, graphql, precheck};

#[tokio::test]
async fn every_operation_of_the_client_examples_fits_the_schema() {
    let schema = graphql::bare();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("client-examples/operations");
    let mut seen = 0;
    for entry in std::fs::read_dir(&directory).expect("the directory") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a document");
        precheck::read(&text, None, &Variables::default(), &Limits::default())
            .unwrap_or_else(|refused| panic!("{}: {refused:?}", path.display()));
        // Validation names no path; what fails later, for want of a database and of variables, does.
        for error in schema.execute(text).await.errors.iter().filter(|error| error.path.is_empty()) {
            assert!(error.message.contains("not supported on this transport"), "{}: {error}", path.display());
        }
        seen += 1;
    }
    assert!(seen >= 12, "only {seen} operations");
}
