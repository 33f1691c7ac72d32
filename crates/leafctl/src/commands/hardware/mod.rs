//! The commands about hardware.

mod list;
mod rescan;
mod show;
mod watch;

commands! {
    List(list::List),
    Show(show::Show),
    Watch(watch::Watch),
    Rescan(rescan::Rescan),
}
