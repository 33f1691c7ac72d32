//! The commands about leaves.

mod label;
mod list;
mod show;

commands! {
    List(list::List),
    Show(show::Show),
    Label(label::Label),
}
