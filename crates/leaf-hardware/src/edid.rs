//! Reads the identity of a monitor from its EDID 1.x (VESA E-EDID standard, release A).

use leaf_core::hardware::{DeviceKind, Direction, Medium};

use crate::draft::{Draft, port};

/// A monitor's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edid {
    /// The vendor's three letters as a packed number, in hexadecimal: `26cd` is `IVM`.
    pub(crate) vendor_id: String,
    /// The vendor's three letters.
    pub(crate) vendor: Option<String>,
    /// The vendor's number of the model, in hexadecimal.
    pub(crate) product_id: String,
    pub(crate) serial: Option<String>,
    pub(crate) name: Option<String>,
    /// Width and height of the image in millimetres.
    pub(crate) millimetres: Option<(u32, u32)>,
}

/// Reads the first block; returns `None` if it is not a valid EDID block.
pub(crate) fn read(bytes: &[u8]) -> Option<Edid> {
    let block: &[u8; 128] = bytes.first_chunk()?;
    if !block.starts_with(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]) {
        return None;
    }
    if block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) != 0 {
        return None;
    }
    let number = u32::from_le_bytes([block[12], block[13], block[14], block[15]]);
    let descriptor = |tag: u8| {
        (54..126).step_by(18).find_map(|at| {
            let text = block.get(at..at + 18)?;
            (text[..3] == [0, 0, 0] && text[3] == tag).then(|| {
                let text: String = text[5..]
                    .iter()
                    .take_while(|byte| **byte != b'\n')
                    .map(|byte| char::from(*byte))
                    .filter(|c| !c.is_control())
                    .collect();
                text.trim().to_owned()
            })
        })
    };
    let vendor = u16::from_be_bytes([block[8], block[9]]);
    let size = (u32::from(block[21]) * 10, u32::from(block[22]) * 10);
    Some(Edid {
        vendor_id: format!("{vendor:04x}"),
        vendor: letters(vendor),
        product_id: format!("{:04x}", u16::from_le_bytes([block[10], block[11]])),
        serial: descriptor(0xff)
            .filter(|text| !text.is_empty())
            .or_else(|| (number != 0).then(|| number.to_string())),
        name: descriptor(0xfc).filter(|text| !text.is_empty()),
        millimetres: (size.0 > 0 && size.1 > 0).then_some(size),
    })
}

/// Returns the vendor's letters: five bits each, where `A` is 1.
fn letters(packed: u16) -> Option<String> {
    [10, 5, 0]
        .into_iter()
        .map(|shift| {
            let letter = u8::try_from((packed >> shift) & 0x1f)
                .ok()
                .filter(|n| (1..=26).contains(n))?;
            Some(char::from(b'A' + letter - 1))
        })
        .collect()
}

/// Returns the draft of a monitor that is connected to the graphics card with this path.
pub(crate) fn monitor(edid: &Edid, path: &str, card: &str, connector: Option<&str>) -> Draft {
    let mut draft = Draft::new(path, "display");
    draft.in_sysfs = false;
    draft.kinds.insert(DeviceKind::Monitor);
    draft.vendor_id = Some(edid.vendor_id.clone());
    draft.device_id = Some(edid.product_id.clone());
    draft.vendor = edid.vendor.clone();
    draft.model = edid.name.clone();
    draft.serial = edid.serial.clone();
    if let Some((width, height)) = edid.millimetres {
        draft
            .attributes
            .insert("width_millimetres".to_owned(), width.to_string());
        draft
            .attributes
            .insert("height_millimetres".to_owned(), height.to_string());
    }
    draft.attributes.insert("attached_to".to_owned(), card.to_owned());
    if let Some(connector) = connector {
        draft
            .attributes
            .insert("connector".to_owned(), connector.to_owned());
    }
    draft.port(port("screen", Direction::Output, Medium::Display, None));
    draft
}

#[cfg(test)]
pub(crate) fn example(serial: u32, name: &str) -> Vec<u8> {
    let mut block = vec![0u8; 128];
    block[..8].copy_from_slice(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    block[8..10].copy_from_slice(&[0x26, 0xcd]);
    block[10..12].copy_from_slice(&0x611d_u16.to_le_bytes());
    block[12..16].copy_from_slice(&serial.to_le_bytes());
    block[21..23].copy_from_slice(&[52, 29]);
    block[54..59].copy_from_slice(&[0, 0, 0, 0xfc, 0]);
    let text = format!("{name}\n            ");
    block[59..72].copy_from_slice(&text.as_bytes()[..13]);
    let sum = block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    block[127] = 0u8.wrapping_sub(sum);
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edid_has_vendor_model_and_serial_number() {
        let edid = read(&example(4711, "PLX2481H")).expect("a valid block");
        assert_eq!(edid.vendor.as_deref(), Some("IVM"));
        assert_eq!(
            (edid.vendor_id.as_str(), edid.product_id.as_str()),
            ("26cd", "611d")
        );
        assert_eq!(edid.serial.as_deref(), Some("4711"));
        assert_eq!(edid.name.as_deref(), Some("PLX2481H"));
        assert_eq!(edid.millimetres, Some((520, 290)));
    }

    #[test]
    fn a_truncated_or_damaged_edid_is_ignored() {
        let good = example(4711, "PLX2481H");
        assert_eq!(read(&good[..127]), None);
        assert_eq!(read(&[]), None);
        for at in 0..128 {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(read(&bad), None, "byte {at}");
        }
    }
}
