//! The commands about sessions of programs.

mod attach;

commands! {
    Attach(attach::Attach),
}
