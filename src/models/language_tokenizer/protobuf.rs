//! The wire format of protocol buffers, as far as sentencepiece uses it.

/// A value on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Integer(u64),
    Bytes(&'a [u8]),
    Float(f32),
    /// A value of eight bytes, which no field that is read here has.
    Eight,
}

/// The fields of a message, each with its number, in the order in which they stand. An error ends them.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

/// A message that ends within a field, or has a wire type that there is not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Broken)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Reads a number in groups of seven bits, the lowest first.
    fn integer(&mut self) -> Result<u64, Broken> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Broken)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), Broken> {
        let key = self.integer()?;
        let value = match key & 7 {
            0 => Value::Integer(self.integer()?),
            1 => {
                self.take(8)?;
                Value::Eight
            }
            2 => {
                let length = usize::try_from(self.integer()?).map_err(|_| Broken)?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Value::Float(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            _ => return Err(Broken),
        };
        Ok((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_all_wire_types_are_read() {
        let bytes = [8, 0xac, 2, 18, 2, b'a', b'b', 29, 0, 0, 0x80, 0x3f, 33, 0, 0, 0, 0, 0, 0, 0, 0];
        let fields: Result<Vec<_>, _> = Fields(&bytes).collect();
        let expected =
            vec![(1, Value::Integer(300)), (2, Value::Bytes(b"ab")), (3, Value::Float(1.)), (4, Value::Eight)];
        assert_eq!(fields, Ok(expected));
    }

    #[test]
    fn message_that_ends_early_is_an_error_and_ends() {
        for bytes in [
            &[8][..],
            &[18, 5, 1],
            &[29, 0],
            &[8, 0xff],
            &[11],
            &[18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0xff; 12],
        ] {
            let fields: Vec<_> = Fields(bytes).collect();
            assert_eq!(fields, [Err(Broken)], "{bytes:?}");
        }
    }
}
