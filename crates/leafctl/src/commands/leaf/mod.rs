//! The commands about leaves.

mod copy;
mod label;
mod list;
mod show;

commands! {
    List(list::List),
    Show(show::Show),
    Label(label::Label),
}
