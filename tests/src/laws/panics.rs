use crate::{
    Subject,
    bench::{Bench, Ran, call, ordinary, run, settle},
    subject::Panicking,
};

use super::{each, some};

pub(super) fn check(subject: &dyn Subject) -> Result<(), String> {
    let check = async |it| poisons_nothing(subject, it).await;
    some("panicking closures", each(|| subject.panicking(), |it| it.what, check)?)
}

async fn poisons_nothing(subject: &dyn Subject, panicking: Panicking) -> Result<(), String> {
    let bench = Bench::new(&panicking.handle, 1);
    for n in 0..3 {
        let mut call = bench.call(panicking.request.request(n));
        if let Ran::Pending = run(&mut call).await {
            return Err("the call whose closure panicked hangs".to_owned());
        }
        drop(call);
        settle().await;
        bench.given_back()?;
    }
    for view in [bench.clone_of_service(), bench.another_service()] {
        match run(&mut call(&view, ordinary(subject))).await {
            Ran::Done(Ok(_)) => {}
            ran => return Err(format!("an ordinary call after the panic: {ran}")),
        }
    }
    bench.passes(ordinary(subject)).await
}
