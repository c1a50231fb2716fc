//! The PostgreSQL server of the trials that need one: asked for once, and a schema for each.

use std::sync::OnceLock;
use std::time::Duration;

use sea_orm::{ConnectionTrait, Database, DatabaseConnection};

/// Says where a PostgreSQL database is in which schemas may be made.
const URL: &str = "GENNAKER_TEST_DATABASE_URL";

fn url() -> String {
    std::env::var(URL).unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/test".to_owned())
}

/// Whether a PostgreSQL server answers; what is missing if none does.
pub fn postgres() -> Result<(), String> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    ANSWER.get_or_init(reachable).clone()
}

fn reachable() -> Result<(), String> {
    let missing = |error: String| format!("a PostgreSQL server at {URL} ({error})");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| missing(error.to_string()))?;
    runtime.block_on(async {
        match tokio::time::timeout(Duration::from_secs(5), Database::connect(url())).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(missing(error.to_string())),
            Err(_) => Err(missing("no answer within 5 s".to_owned())),
        }
    })
}

/// A schema of the trial's own.
pub struct Schema {
    pub name: String,
    /// Connections by this URL see the schema only, and bear its name.
    pub url: String,
    /// Connected to the server beside the schema.
    pub admin: DatabaseConnection,
}

impl Schema {
    pub async fn create() -> anyhow::Result<Self> {
        let name = format!("it_{}", uuid::Uuid::new_v4().simple());
        let admin = Database::connect(url()).await?;
        admin.execute_unprepared(&format!("CREATE SCHEMA {name}")).await?;
        let separator = if url().contains('?') { '&' } else { '?' };
        let url = format!("{}{separator}options=-csearch_path%3D{name}&application_name={name}", url());
        Ok(Self { name, url, admin })
    }

    /// Removes it with all that is in it.
    pub async fn drop(self) -> anyhow::Result<()> {
        self.admin.execute_unprepared(&format!("DROP SCHEMA {} CASCADE", self.name)).await?;
        Ok(self.admin.close().await?)
    }
}
