//! The commands about leaves.

mod confirm;
mod copy;
mod label;
mod list;
mod move_to;
mod show;

commands! {
    List(list::List),
    Show(show::Show),
    Label(label::Label),
    MoveTo(move_to::MoveTo),
    Confirm(confirm::Confirm),
}
