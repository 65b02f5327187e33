//! The memory that this process can take.

/// Returns a number of bytes in words; 1 MiB for less.
pub fn in_words(bytes: u64) -> String {
    if bytes < 1 << 30 {
        return format!("{:.0} MiB", (bytes as f64 / f64::from(1 << 20)).max(1.));
    }
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Returns the bytes that this process can take: what the system has free, pages of files included, or less if a control
/// group allows less. `None` if the system does not say.
pub fn free() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10;
    Some(free_of_group().map_or(available, |group| group.min(available)))
}

/// Returns the bytes that the control group of the process still allows, pages of files included; `None` if it has no
/// limit.
fn free_of_group() -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let most = number(read("memory.max")?)?;
    let files = read("memory.stat")?.lines().find_map(|line| line.strip_prefix("file ")?.trim().parse::<u64>().ok());
    Some(most.saturating_sub(number(read("memory.current")?)?.saturating_sub(files.unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_units_that_people_read() {
        let told = ["1 MiB", "3 MiB", "1.0 GiB", "2.5 GiB"];
        assert_eq!([9, 3 << 20, 1 << 30, 2684354560].map(in_words), told);
    }

    #[test]
    fn some_memory_is_free_if_the_system_says() {
        assert!(free().is_none_or(|free| free > 1 << 20));
    }
}
