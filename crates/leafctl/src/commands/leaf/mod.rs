//! The commands about leaves.

mod list;
mod show;

commands! {
    List(list::List),
    Show(show::Show),
}
