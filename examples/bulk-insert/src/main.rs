//! Rows of many callers that go into a table with one statement: nothing here is HTTP.
//!
//! A statement takes 20 ms, however many rows it has; the table takes two at once. Callers insert a row each and get its
//! number. A row that the table has already is refused, and the others of its statement go in.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bartizan_batch::{Batch, BatchFailed, Settings};
use bartizan_core::{BoxError, Rejected, RejectionKind};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tower::{Layer, ServiceExt, service_fn};

#[derive(Clone, Debug)]
struct Row {
    table: &'static str,
    name: String,
}

/// A database of a kind: it has two tables, and notes how many statements it was sent.
#[derive(Default)]
struct Database {
    tables: HashMap<&'static str, Vec<String>>,
    statements: usize,
}

/// `insert into .. values (..), (..), ..`
async fn insert(
    database: Arc<Mutex<Database>>,
    rows: Vec<Row>,
) -> Result<Vec<Result<usize, String>>, BoxError> {
    sleep(Duration::from_millis(20)).await;
    let mut database = database.lock().expect("nothing panics under this lock");
    database.statements += 1;
    let Row { table, .. } = rows[0];
    assert!(rows.iter().all(|row| row.table == table), "a statement is about one table");
    let Some(names) = database.tables.get_mut(table) else {
        return Err(format!("there is no table {table}").into());
    };
    let number = |row: Row| match names.contains(&row.name) {
        true => Err(format!("{} is there already", row.name)),
        false => {
            names.push(row.name);
            Ok(names.len())
        }
    };
    Ok(rows.into_iter().map(number).collect())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    run().await
}

async fn run() -> Result<(), BoxError> {
    let tables = HashMap::from([("people", Vec::new()), ("places", Vec::new())]);
    let database = Arc::new(Mutex::new(Database { tables, statements: 0 }));

    let batch = Batch::new(
        Settings::max_size(100)
            .linger(Duration::from_millis(5))
            .max_concurrent(2)
            .deadline(Duration::from_secs(10)),
    );
    let below = database.clone();
    let table = batch
        .layer()
        .by(|row: &Row| row.table)
        .max_weight(64 * 1024, |row| row.name.len() as u64)
        .layer(service_fn(move |rows| insert(below.clone(), rows)));

    let begin = Instant::now();
    let mut inserting = JoinSet::new();
    for n in 0..500 {
        let row = |table| Row { table, name: format!("{table} {}", n % 490) };
        inserting.spawn(table.clone().oneshot(row("people")));
        inserting.spawn(table.clone().oneshot(row("places")));
    }
    let (mut numbers, mut twice) = (Vec::new(), 0);
    while let Some(inserted) = inserting.join_next().await {
        match inserted? {
            Ok(number) => numbers.push(number),
            Err(error) => {
                assert!(error.to_string().ends_with("is there already"), "{error}");
                twice += 1;
            }
        }
    }
    numbers.sort_unstable();
    assert!(numbers.chunks(2).map(|pair| pair[0]).eq(1..=490), "everybody has a number of his own");
    assert_eq!((numbers.len(), twice), (980, 20));
    let statements = database.lock().expect("nothing panics under this lock").statements;
    // Ten, if the machine is not so busy that some of them lingered long enough.
    assert!(
        (10..=20).contains(&statements),
        "1,000 rows, and up to 100 of a table in a statement: {statements}"
    );
    println!("1000 rows in {statements} statements and {} ms", begin.elapsed().as_millis());

    // What fails a statement fails its rows, and no others.
    let row = |table| Row { table, name: "anna".to_owned() };
    let (nowhere, somewhere) =
        tokio::join!(table.clone().oneshot(row("planets")), table.clone().oneshot(row("people")));
    let error = nowhere.unwrap_err();
    let failed = error.downcast_ref::<BatchFailed>().and_then(std::error::Error::source);
    println!("planets: {}", failed.expect("the statement failed"));
    assert_eq!(somewhere?, 491);

    // What waits at the end is sent; what comes later is refused.
    let last = tokio::spawn(table.clone().oneshot(row("places")));
    while batch.stats().waiting == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    batch.shutdown();
    let late = table.oneshot(row("people")).await.unwrap_err();
    println!("late: {late}");
    assert_eq!(Rejected::find(&*late).map(Rejected::kind), Some(RejectionKind::Closed));
    assert_eq!(last.await??, 491);
    println!("{:?}", batch.stats());
    Ok(())
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn it_runs_to_its_end() {
        super::run().await.unwrap();
    }
}
