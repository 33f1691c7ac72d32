//! systemd and systemd-machined, over D-Bus.

/// Returns a name, of a unit or a machine, as a part of its path on D-Bus: all but letters and digits as `_` and two digits
/// (sd_bus_path_encode(3)).
#[must_use]
pub fn bus_path_part(name: &str) -> String {
    let mut part = String::new();
    for (at, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit()) {
            part.push(char::from(byte));
        } else {
            part.push_str(&format!("_{byte:02x}"));
        }
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_becomes_a_part_of_a_path_as_systemd_writes_it() {
        assert_eq!(
            bus_path_part("container@web-1.service"),
            "container_40web_2d1_2eservice"
        );
        assert_eq!(bus_path_part("1web"), "_31web");
    }
}
