//! Derives the kind of an input device from the kernel's capability bits, by the rules of udev's `input_id`.

use leaf_core::hardware::DeviceKind;

const EV_KEY: usize = 1;
const EV_REL: usize = 2;
const EV_ABS: usize = 3;
const REL_X: usize = 0;
const ABS_X: usize = 0;
const ABS_MT_POSITION_X: usize = 0x35;
const BTN_MOUSE: usize = 0x110;
const BTN_TOOL_FINGER: usize = 0x145;
const BTN_TOUCH: usize = 0x14a;
const INPUT_PROP_POINTER: usize = 0;
const INPUT_PROP_DIRECT: usize = 1;
/// `KEY_Q` to `KEY_P`.
const LETTERS: std::ops::RangeInclusive<usize> = 16..=25;

/// Returns the kind from the files `capabilities/{ev,key,rel,abs}` and `properties` of an input device.
pub(crate) fn kind(read: impl Fn(&str) -> Option<String>) -> DeviceKind {
    let bits = |file: &str| Bits::parse(&read(file).unwrap_or_default());
    let (events, keys) = (bits("capabilities/ev"), bits("capabilities/key"));
    let (relative, absolute) = (bits("capabilities/rel"), bits("capabilities/abs"));
    let properties = bits("properties");
    let places = events.has(EV_ABS) && (absolute.has(ABS_X) || absolute.has(ABS_MT_POSITION_X));
    if places
        && !properties.has(INPUT_PROP_POINTER)
        && (properties.has(INPUT_PROP_DIRECT) || keys.has(BTN_TOUCH))
    {
        return DeviceKind::Touch;
    }
    if places && keys.has(BTN_TOOL_FINGER) {
        return DeviceKind::Touch;
    }
    if keys.has(BTN_MOUSE) && (places || (events.has(EV_REL) && relative.has(REL_X))) {
        return DeviceKind::Mouse;
    }
    if events.has(EV_KEY) && LETTERS.into_iter().all(|key| keys.has(key)) {
        return DeviceKind::Keyboard;
    }
    DeviceKind::Input
}

/// A bitmap as sysfs prints it: hexadecimal words of the machine's word size, the highest first.
struct Bits(Vec<u64>);

impl Bits {
    fn parse(text: &str) -> Self {
        Self(
            text.split_whitespace()
                .rev()
                .map(|word| u64::from_str_radix(word, 16).unwrap_or_default())
                .collect(),
        )
    }

    fn has(&self, bit: usize) -> bool {
        self.0
            .get(bit / 64)
            .is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> DeviceKind {
        kind(|file| {
            let (_, text) = files.iter().find(|(name, _)| *name == file)?;
            Some((*text).to_owned())
        })
    }

    #[test]
    fn keyboards_mice_touchpads_and_buttons_are_distinguished() {
        let keyboard = [
            ("capabilities/ev", "120013"),
            (
                "capabilities/key",
                "402000000 3803078f800d001 feffffdfffefffff fffffffffffffffe",
            ),
        ];
        assert_eq!(of(&keyboard), DeviceKind::Keyboard);
        let mouse = [
            ("capabilities/ev", "17"),
            ("capabilities/key", "1f0000 0 0 0 0"),
            ("capabilities/rel", "1943"),
        ];
        assert_eq!(of(&mouse), DeviceKind::Mouse);
        let touchpad = [
            ("capabilities/ev", "1b"),
            ("capabilities/key", "e520 10000 0 0 0 0"),
            ("capabilities/abs", "2e0800000000003"),
            ("properties", "5"),
        ];
        assert_eq!(of(&touchpad), DeviceKind::Touch);
        let power_button = [("capabilities/ev", "3"), ("capabilities/key", "10000000000000 0")];
        assert_eq!(of(&power_button), DeviceKind::Input);
        assert_eq!(of(&[]), DeviceKind::Input);
    }
}
