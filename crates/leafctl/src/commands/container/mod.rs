//! The commands about containers.

mod adopt;
mod apply;
mod create;
mod diff;
mod health;
mod history;
mod list;
mod logs;
mod restart;
mod rollback;
mod set;
mod settle;
mod show;
mod spec_file;
mod stats;
mod update;
mod verb;

commands! {
    Create(create::Create),
    Apply(apply::Apply),
    #[command(flatten)]
    Verb(verb::Verb),
    Restart(restart::Restart),
    Update(update::Update),
    Set(set::Set),
    Diff(diff::Diff),
    History(history::History),
    Rollback(rollback::Rollback),
    Adopt(adopt::Adopt),
    List(list::List),
    Show(show::Show),
    Health(health::Health),
    Logs(logs::Logs),
    Stats(stats::Stats),
}
