//! The commands about secrets. A secret is encrypted here, and its content is never printed.

mod known_leaves;
mod list;
mod remove;
mod set;

commands! {
    Set(set::Set),
    List(list::List),
    Remove(remove::Remove),
}
