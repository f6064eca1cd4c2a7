//! Resource quantities (`500m`, `1.5Gi`) in their canonical form.
//!
//! Clients compare what they sent with what they get back, so `0.5` must come back as `500m`, as from any API server.

/// The canonical spelling of a quantity, or `None` if it is not one.
pub fn canonical(text: &str) -> Option<String> {
    let Parsed {
        negative,
        mantissa,
        exponent,
        form,
    } = parse(text)?;
    let spelled = match form {
        Form::Binary(power) => binary(mantissa, exponent, power)?,
        form => decimal(mantissa, exponent, &form),
    };
    Some(signed(negative, spelled))
}

/// The amount in billionths, rounded up; what can't be that large is no quantity here.
pub fn nanos(text: &str) -> Option<i128> {
    let Parsed {
        negative,
        mantissa,
        exponent,
        form,
    } = parse(text)?;
    let scaled = match form {
        Form::Binary(power) => mantissa.checked_mul(1_i128.checked_shl(10 * power)?)?,
        Form::Decimal | Form::Exponent => mantissa,
    };
    let power = exponent + 9;
    let factor = 10_i128.checked_pow(power.unsigned_abs())?;
    let amount = if power < 0 {
        scaled.checked_add(factor - 1)? / factor
    } else {
        scaled.checked_mul(factor)?
    };
    Some(if negative { -amount } else { amount })
}

/// `mantissa * 10^exponent`, for binary forms also times `1024^power`.
struct Parsed {
    negative: bool,
    mantissa: i128,
    exponent: i32,
    form: Form,
}

enum Form {
    Decimal,
    Exponent,
    Binary(u32),
}

fn parse(text: &str) -> Option<Parsed> {
    let number_end = text
        .find(|c: char| !c.is_ascii_digit() && !"+-.".contains(c))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty())
        || !plain(whole)
        || !plain(fraction)
        || whole.len() + fraction.len() > 25
    {
        return None;
    }
    let mantissa: i128 = format!("0{whole}{fraction}").parse().ok()?;
    let fraction_digits = i32::try_from(fraction.len()).ok()?;
    let (form, power) = match suffix {
        "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei" => {
            let power = 1 + "KMGTPE".find(suffix.get(..1)?)?;
            (Form::Binary(u32::try_from(power).ok()?), 0)
        }
        "n" => (Form::Decimal, -9),
        "u" => (Form::Decimal, -6),
        "m" => (Form::Decimal, -3),
        "" => (Form::Decimal, 0),
        "k" => (Form::Decimal, 3),
        "M" => (Form::Decimal, 6),
        "G" => (Form::Decimal, 9),
        "T" => (Form::Decimal, 12),
        "P" => (Form::Decimal, 15),
        "E" => (Form::Decimal, 18),
        _ => {
            let power = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok();
            (Form::Exponent, power.filter(|power| power.abs() <= 30)?)
        }
    };
    Some(Parsed {
        negative,
        mantissa,
        exponent: power - fraction_digits,
        form,
    })
}

fn signed(negative: bool, text: String) -> String {
    if negative && text != "0" {
        format!("-{text}")
    } else {
        text
    }
}

fn binary(mantissa: i128, exponent: i32, power: u32) -> Option<String> {
    let scaled = mantissa.checked_mul(1_i128.checked_shl(10 * power)?)?;
    let divisor = 10_i128.checked_pow(exponent.unsigned_abs())?;
    let mut value = scaled.checked_add(divisor - 1)? / divisor;
    if value < 1024 {
        return Some(decimal(value, 0, &Form::Decimal));
    }
    let mut unit = 0;
    while value % 1024 == 0 && unit < 6 {
        value /= 1024;
        unit += 1;
    }
    Some(format!(
        "{value}{}",
        ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].get(unit)?
    ))
}

fn decimal(mut mantissa: i128, mut exponent: i32, form: &Form) -> String {
    if mantissa == 0 {
        return "0".to_owned();
    }
    // Nothing is finer than a nano; what is gets rounded up.
    while exponent < -9 {
        mantissa = (mantissa + 9) / 10;
        exponent += 1;
    }
    while mantissa % 10 == 0 && exponent < 18 {
        mantissa /= 10;
        exponent += 1;
    }
    while exponent.rem_euclid(3) != 0 || exponent > 18 {
        mantissa = mantissa.saturating_mul(10);
        exponent -= 1;
    }
    match form {
        Form::Exponent if exponent == 0 => mantissa.to_string(),
        Form::Exponent => format!("{mantissa}e{exponent}"),
        Form::Decimal | Form::Binary(_) => {
            let suffix = match exponent {
                -9 => "n",
                -6 => "u",
                -3 => "m",
                3 => "k",
                6 => "M",
                9 => "G",
                12 => "T",
                15 => "P",
                18 => "E",
                _ => "",
            };
            format!("{mantissa}{suffix}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{canonical, nanos};

    #[test]
    fn quantities_take_the_largest_unit_without_fraction() {
        for (given, expected) in [
            ("0.5", "500m"),
            ("1500m", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("2000", "2k"),
            ("1", "1"),
            ("0", "0"),
            ("128Mi", "128Mi"),
            ("-1.50", "-1500m"),
            ("100e3", "100e3"),
            ("1e3", "1e3"),
            ("0.0000000001", "1n"),
            ("512Ki", "512Ki"),
        ] {
            assert_eq!(canonical(given).as_deref(), Some(expected), "{given}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for given in [
            "",
            "Mi",
            "1.2.3",
            "1 Gi",
            "ten",
            "1Q",
            "1e",
            "--1",
            "9".repeat(40).as_str(),
        ] {
            assert_eq!(canonical(given), None, "{given}");
        }
    }

    #[test]
    fn amounts_compare_across_forms() {
        assert_eq!(nanos("0.5"), nanos("500m"));
        assert_eq!(nanos("1Gi"), nanos("1073741824"));
        assert!(nanos("1Gi") > nanos("1G"));
        assert!(nanos("-1") < nanos("0"));
    }
}
