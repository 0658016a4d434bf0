//! Which kept channels share a GroupNorm group once channels are sorted and cut.

/// The number of groups over `kept` channels: `min(full_groups, kept)`, reduced by one until it divides `kept`.
pub fn count(kept: usize, full_groups: usize) -> usize {
    (1..=full_groups.min(kept)).rev().find(|g| kept.is_multiple_of(*g)).unwrap_or(1)
}

/// The group of each kept channel, given the original channel at each kept position.
///
/// The subnet's norm has [`count`] groups, re-formed over the kept channels in their original order. At full width this
/// is the original membership; where the same number is kept from every group, membership never changes either.
pub fn membership(kept: &[u32], full_groups: usize) -> Vec<u32> {
    let share = kept.len() / count(kept.len(), full_groups);
    let mut by_origin: Vec<usize> = (0..kept.len()).collect();
    by_origin.sort_unstable_by_key(|&position| kept[position]);
    let mut table = vec![0; kept.len()];
    for (rank, position) in by_origin.into_iter().enumerate() {
        table[position] = (rank / share) as u32;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::membership;

    #[test]
    fn at_full_width_sorting_keeps_the_original_groups() {
        let order = [5, 0, 3, 7, 1, 6, 2, 4];
        let table = membership(&order, 4);
        assert_eq!(table, order.map(|channel| channel / 2));
    }

    #[test]
    fn a_width_that_the_groups_do_not_divide_takes_the_next_smaller_number_of_groups() {
        // 6 kept channels, at most 4 groups: 3 groups of 2 over the original order 0 1 3 5 6 7.
        assert_eq!(membership(&[5, 0, 3, 7, 1, 6], 4), [1, 0, 1, 2, 0, 2]);
        assert_eq!(membership(&[9, 2, 4], 8), [2, 0, 1]);
        assert_eq!(membership(&[3], 8), [0]);
    }

    #[test]
    fn keeping_the_same_number_of_every_group_keeps_membership() {
        // Two of each original group of four.
        let kept = [1, 6, 9, 3, 4, 11];
        assert_eq!(membership(&kept, 3), kept.map(|channel| channel / 4));
    }
}
