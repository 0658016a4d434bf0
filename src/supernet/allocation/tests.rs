use super::*;
use crate::supernet::spec::{Init, Param, Public, Role, Slice};
use crate::supernet::{PipeKind, Widths};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::PathBuf;

fn matrix(name: String, shape: [usize; 2], axis: usize, pipe: usize, uses: u64) -> Param {
    let role = if axis == 1 { Role::Produces } else { Role::Consumes };
    Param {
        name,
        shape: shape.to_vec(),
        slices: vec![Slice { axis, pipe, role, copies: 1 }],
        public: Public(vec![vec![1], vec![0]]),
        pieces: Vec::new(),
        init: Init::Constant(0.0),
        uses,
        trainable: true,
    }
}

/// A pipe of a made-up network: `(block, kind, group, width, norm groups, residual width, positions)`.
type Row = (String, PipeKind, String, usize, Option<usize>, usize, u64);

fn spec_of(rows: &[Row], whole: usize) -> Spec {
    let mut spec = Spec::default();
    for (index, (block, kind, group, width, norm_groups, residual, uses)) in rows.iter().enumerate() {
        spec.pipes.push(Pipe {
            name: format!("{block}.{}", kind.as_str()),
            block: block.clone(),
            kind: *kind,
            width: *width,
            block_width: if *kind != PipeKind::Conv && *residual > 1 { *residual } else { *width },
            allocation_group: group.clone(),
            norm_groups: *norm_groups,
            macs_per_channel: if *kind == PipeKind::Attn { 1000 } else { 0 },
        });
        spec.params.push(matrix(format!("{block}.in"), [*residual, *width], 1, index, *uses));
        spec.params.push(matrix(format!("{block}.out"), [*width, *residual], 0, index, *uses));
    }
    let unsliced = Param { slices: Vec::new(), ..matrix("skip".into(), [whole, 1], 0, 0, 64) };
    spec.params.push(unsliced);
    spec
}

struct Golden {
    json: Value,
    spec: Spec,
    importance: Vec<Vec<f64>>,
}

/// What `tests/goldens` holds of a network: its pipes, and the allocations that PyTorch code computed for them.
fn golden(name: &str) -> Golden {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let json: Value = serde_json::from_slice(&std::fs::read(folder.join(format!("{name}.json"))).unwrap()).unwrap();
    let bytes = std::fs::read(folder.join(format!("{name}.expected.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let residual = json["config"]["embed_dim"].as_u64().unwrap_or(1) as usize;
    let (mut rows, mut importance) = (Vec::new(), Vec::new());
    for (group, blocks) in json["groups"].as_object().unwrap() {
        for block in blocks.as_array().unwrap().iter().map(|block| block.as_str().unwrap()) {
            for kind in [PipeKind::Conv, PipeKind::Attn, PipeKind::Ffn] {
                let Ok(tensor) = tensors.tensor(&format!("importance.{}.{block}", kind.as_str())) else { continue };
                let floats = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                let mut row: Vec<f64> = floats.map(f64::from).collect();
                row.sort_by(|a, b| b.total_cmp(a));
                rows.push((block.to_owned(), kind, group.clone(), row.len(), None, residual, 1));
                importance.push(row);
            }
        }
    }
    Golden { spec: spec_of(&rows, 1), importance, json }
}

fn assert_allocates_as_pytorch(name: &str, table: &str, align: usize) {
    let Golden { json, spec, importance } = golden(name);
    let table = json[table].as_object().unwrap();
    assert_eq!(table.len(), 7);
    for (ratio, blocks) in table {
        let constraint = Constraint { align, ..Constraint::default() };
        let widths = channels(&spec, &importance, ratio.parse().unwrap(), constraint).unwrap();
        let mut expected = 0;
        for (pipe, kept) in spec.pipes.iter().zip(&widths.0) {
            let golden = &blocks[&pipe.block][format!("{}_keep", pipe.kind.as_str())];
            assert_eq!(Some(*kept as u64), golden.as_u64(), "{name} {ratio} {}", pipe.name);
            expected += 1;
        }
        let all: usize = blocks.as_object().unwrap().values().map(|block| block.as_object().unwrap().len()).sum();
        assert_eq!(expected, all);
    }
}

#[test]
fn song_unets_get_the_channels_that_pytorch_gave_them() {
    for name in ["song_unet_vp_cond", "song_unet_edm_uncond", "song_unet_ve_ncsnpp"] {
        assert_allocates_as_pytorch(name, "allocation", 1);
        assert_allocates_as_pytorch(name, "allocation_aligned_8", 8);
    }
}

#[test]
fn a_u_vit_gets_the_channels_that_pytorch_gave_it() {
    // The reference has no aligned table for it: a head of 16 offsets has nothing to align.
    assert_allocates_as_pytorch("u_vit_uncond", "allocation", 1);
}

#[test]
fn a_ladder_of_ratios_is_exact_to_three_decimals() {
    assert_eq!(ratios(0.125).unwrap(), [0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]);
    let fine = ratios(0.025).unwrap();
    assert_eq!((fine.len(), fine[0], fine[2], fine[30]), (31, 0.25, 0.3, 1.0));
    assert!(fine.iter().all(|ratio| *ratio == format!("{ratio:.3}").parse::<f64>().unwrap()));
    assert_eq!(ratios(0.5).unwrap(), [0.25, 0.75, 1.0]);
    for step in [0.0, -0.1, 0.0005, 0.8, f64::NAN, f64::INFINITY] {
        assert!(ratios(step).is_err(), "{step}");
    }
}

fn conv(block: &str, width: usize, norm_groups: usize) -> Row {
    (block.into(), PipeKind::Conv, "all".into(), width, Some(norm_groups), 16, 1)
}

#[test]
fn a_ratio_below_the_smallest_reachable_one_is_refused_with_that_one() {
    let spec = spec_of(&[conv("a", 64, 16)], 16);
    let importance = [vec![1.0; 64]];
    let smallest = smallest_ratio(&spec, Cost::Macs, Constraint::default());
    assert_eq!(format!("{smallest:.3}"), "0.500");
    let refusal = greedy(&spec, &importance, Cost::Macs, &[0.25, 1.0], Constraint::default()).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "--ratios: 0.250 of the MACs cannot be reached, since pipes keep 0.25 of themselves (--floor), and resampling blocks and skips \
         stay whole; the smallest reachable ratio is 0.500"
    );
    assert!(greedy(&spec, &importance, Cost::Macs, &[0.5], Constraint::default()).is_ok());
}

#[test]
fn a_ratio_between_two_coarse_stops_is_refused_with_both() {
    let spec = spec_of(&[conv("a", 64, 16)], 0);
    let within = Constraint { within_group: true, ..Constraint::default() };
    let refusal = greedy(&spec, &[vec![1.0; 64]], Cost::Params, &[0.25, 0.6], within).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "--ratios: 0.600 of the parameters cannot be met within 2 %, since pipes widen by many channels at once; \
         the nearest reachable ratios are 0.500 and 0.750"
    );
    let widths = greedy(&spec, &[vec![1.0; 64]], Cost::Params, &[0.75, 0.5], within).unwrap();
    assert_eq!(widths, [Widths(vec![48]), Widths(vec![32])]);
}

#[test]
fn a_step_that_is_too_coarse_makes_room_for_finer_ones() {
    // The next step of the dear pipe leads from 0.25 past 0.35, which the cheap pipe alone can meet.
    let dear = conv("dear", 64, 16);
    let cheap = ("cheap".into(), PipeKind::Attn, "all".into(), 64, None, 16, 1);
    let spec = spec_of(&[dear, cheap], 0);
    let importance = [vec![9.0; 64], vec![1.0; 64]];
    let within = Constraint { within_group: true, ..Constraint::default() };
    let widths = greedy(&spec, &importance, Cost::Params, &[0.32, 1.0], within).unwrap();
    assert_eq!(widths[0].0[0], 16);
    let realised = spec.parameters(&widths[0]) as f64 / spec.parameters(&spec.full()) as f64;
    assert!((realised - 0.32).abs() <= TOLERANCE * 0.32, "{realised}");
}

#[test]
fn channels_go_where_they_are_worth_the_most_for_their_cost() {
    let dear = ("dear".into(), PipeKind::Conv, "a".into(), 100, None, 16, 8);
    let cheap = ("cheap".into(), PipeKind::Conv, "b".into(), 100, None, 16, 1);
    let spec = spec_of(&[dear, cheap], 0);
    // Twice the importance at eight times the cost: the cheap pipe is whole before the dear one grows.
    let importance = [vec![2.0; 100], vec![1.0; 100]];
    let widths = greedy(&spec, &importance, Cost::Macs, &[0.4], Constraint::default()).unwrap();
    assert_eq!(widths[0].0[1], 100);
    assert!(widths[0].0[0] < 40);
}

#[test]
fn a_wrong_ratio_align_or_importance_is_refused_by_name() {
    let spec = spec_of(&[conv("a", 4, 2)], 0);
    let free = Constraint::default();
    for ratio in [0.0, -0.5, 1.001, f64::NAN, f64::INFINITY] {
        let refusal = channels(&spec, &[vec![1.0; 4]], ratio, free).unwrap_err().to_string();
        assert_eq!(refusal, format!("--ratios: {ratio} is not a ratio; give a number above 0 and at most 1"));
        assert_eq!(refusal, greedy(&spec, &[vec![1.0; 4]], Cost::Macs, &[ratio], free).unwrap_err().to_string());
    }
    let refused = |importance: &[Vec<f64>], align| {
        channels(&spec, importance, 0.5, Constraint { align, ..Constraint::default() }).unwrap_err().to_string()
    };
    assert_eq!(refused(&[vec![1.0; 4]], 0), "--align: 0 is not a number of channels; give 1 or more");
    assert_eq!(refused(&[], 1), "importance: ranks 0 pipes where the network has 1");
    assert_eq!(refused(&[vec![1.0; 3]], 1), "importance of a.conv: ranks 3 channels where the pipe has 4");
    assert_eq!(
        refused(&[vec![1.0, 1.0, f64::NAN, 1.0]], 1),
        "importance of a.conv: channel 2 has NaN, which is not a finite number of at least 0"
    );
}

#[test]
fn what_nothing_ranks_is_shared_evenly() {
    let spec = spec_of(&[conv("a", 64, 16), conv("b", 64, 16)], 0);
    let nothing = [vec![0.0; 64], vec![0.0; 64]];
    let half = Widths(vec![32, 32]);
    assert_eq!(channels(&spec, &nothing, 0.5, Constraint::default()).unwrap(), half);
    assert_eq!(greedy(&spec, &nothing, Cost::Macs, &[0.5], Constraint::default()).unwrap(), [half]);
}

/// Networks of 1 to 8 blocks in up to 3 groups, half of them with attention, and importances for them.
fn networks(smallest: usize) -> impl Strategy<Value = (Spec, Vec<Vec<f64>>)> {
    let block = (0..3_u8, 2..6_u32, 1..6_usize, 1..64_usize, 1..300_u64, any::<bool>());
    let shape = (proptest::collection::vec(block, 1..8), 0..5000_usize);
    shape.prop_flat_map(move |(blocks, whole)| {
        let mut rows: Vec<Row> = Vec::new();
        for (index, (group, log_groups, times, residual, uses, attention)) in blocks.into_iter().enumerate() {
            let groups = 1 << log_groups;
            let width = groups * times.max(smallest.div_ceil(groups));
            let (name, group) = (format!("block{index}"), group.to_string());
            rows.push((name.clone(), PipeKind::Conv, group.clone(), width, Some(groups), residual, uses));
            if attention {
                rows.push((name, PipeKind::Attn, group, width.max(4) - 1, None, residual, uses));
            }
        }
        let spec = spec_of(&rows, whole);
        let row = |pipe: &Pipe| {
            let scale = prop_oneof![Just(0.0), 1e-3..1e3_f64];
            (scale, proptest::collection::vec(0.0..1.0_f64, pipe.width)).prop_map(|(scale, row)| {
                let mut row: Vec<f64> = row.into_iter().map(|v| v * scale).collect();
                row.sort_by(|a, b| b.total_cmp(a));
                row
            })
        };
        let importance: Vec<_> = spec.pipes.iter().map(row).collect();
        (Just(spec), importance)
    })
}

fn constraints() -> impl Strategy<Value = Constraint> {
    let floor = prop_oneof![Just(0.0), Just(QUARTER), 0.0..1.0_f64];
    (floor, 1..20_usize, any::<bool>()).prop_map(|(floor, align, within_group)| Constraint {
        floor,
        align,
        within_group,
    })
}

fn costs() -> impl Strategy<Value = Cost> {
    prop_oneof![Just(Cost::Macs), Just(Cost::Params)]
}

fn cost_of(spec: &Spec, cost: Cost, widths: &Widths) -> f64 {
    (match cost {
        Cost::Macs => spec.macs(widths),
        Cost::Params => spec.parameters(widths),
    }) as f64
}

proptest! {
    /// Formula 5 gives every pipe at least its floor and at most itself, grows with P, and at 1 is the whole network.
    #[test]
    fn allocated_channels_nest((spec, importance) in networks(1), constraint in constraints()) {
        let ladder = ratios(0.025).unwrap();
        let widths: Vec<Widths> =
            ladder.iter().map(|&ratio| channels(&spec, &importance, ratio, constraint).unwrap()).collect();
        prop_assert_eq!(widths.last().unwrap(), &spec.full());
        for pair in widths.windows(2) {
            prop_assert!(pair[0].nests_in(&pair[1]), "{:?}", pair);
        }
        for (pipe, &kept) in spec.pipes.iter().zip(&widths[0].0) {
            // Half a channel of rounding for the block, and half for the pipe.
            let least = constraint.floor * pipe.width as f64;
            prop_assert!((kept >= 1 || least == 0.0) && kept as f64 >= least - 1.0);
        }
        for (pipe, &kept) in widths.iter().flat_map(|widths| spec.pipes.iter().zip(&widths.0)) {
            let groups = pipe.norm_groups.filter(|_| constraint.within_group).unwrap_or(1);
            prop_assert!(kept == pipe.width || kept % groups == 0);
        }
    }

    /// Where every width is allowed, every reachable ratio is met, and a larger one contains a smaller one.
    #[test]
    fn greedy_meets_every_reachable_ratio(
        (spec, importance) in networks(100),
        cost in costs(),
        floor in prop_oneof![Just(QUARTER), Just(0.0)],
    ) {
        let free = Constraint { floor, ..Constraint::default() };
        let smallest = smallest_ratio(&spec, cost, free);
        let ladder: Vec<f64> = ratios(0.025).unwrap().into_iter().filter(|&ratio| ratio >= smallest).collect();
        let widths = greedy(&spec, &importance, cost, &ladder, free).unwrap();
        for pair in widths.windows(2) {
            prop_assert!(pair[0].nests_in(&pair[1]), "{:?}", pair);
        }
        let full = cost_of(&spec, cost, &spec.full());
        for (ratio, widths) in ladder.iter().zip(&widths) {
            let realised = cost_of(&spec, cost, widths) / full;
            prop_assert!((realised - ratio).abs() <= TOLERANCE * ratio + 1e-12, "{realised} for {ratio}");
            prop_assert!(spec.pipes.iter().zip(&widths.0).all(|(pipe, &kept)| kept as f64 >= floor * pipe.width as f64));
        }
        prop_assert_eq!(widths.last().unwrap(), &spec.full());
        // A ratio asked alone is the same network as in a ladder.
        let middle = ladder.len() / 2;
        prop_assert_eq!(&greedy(&spec, &importance, cost, &ladder[middle..=middle], free).unwrap()[0], &widths[middle]);
    }

    /// Coarse quanta are kept to, and a ratio that they cannot meet is refused rather than missed.
    #[test]
    fn greedy_keeps_to_the_quanta((spec, importance) in networks(1), cost in costs(), constraint in constraints()) {
        let full = cost_of(&spec, cost, &spec.full());
        let met: Vec<(f64, Widths)> = ratios(0.025)
            .unwrap()
            .into_iter()
            .filter_map(|ratio| Some((ratio, greedy(&spec, &importance, cost, &[ratio], constraint).ok()?.remove(0))))
            .collect();
        prop_assert_eq!(&met.last().unwrap().1, &spec.full());
        for (ratio, widths) in &met {
            prop_assert!((cost_of(&spec, cost, widths) / full - ratio).abs() <= TOLERANCE * ratio + 1e-12);
            for (pipe, &kept) in spec.pipes.iter().zip(&widths.0) {
                prop_assert!(kept == pipe.width || kept % constraint.quantum(pipe) == 0);
            }
        }
        let ladder: Vec<f64> = met.iter().map(|(ratio, _)| *ratio).collect();
        if let Ok(widths) = greedy(&spec, &importance, cost, &ladder, constraint) {
            prop_assert!(widths.windows(2).all(|pair| pair[0].nests_in(&pair[1])));
        }
    }

    /// The polynomial is the table's own count.
    #[test]
    fn the_cost_model_counts_as_the_spec_does((spec, _) in networks(1), cost in costs(), share in 0.0..1.0_f64) {
        let model = super::cost::CostModel::new(&spec, cost);
        let widths = Widths(spec.pipes.iter().map(|p| ((share * p.width as f64) as usize).max(1)).collect());
        prop_assert_eq!(model.total(&widths.0) as f64, cost_of(&spec, cost, &widths));
        let mut widened = widths.clone();
        widened.0[0] = spec.pipes[0].width;
        let gain = cost_of(&spec, cost, &widened) - cost_of(&spec, cost, &widths);
        prop_assert_eq!(model.gain(&widths.0, 0, widened.0[0]) as f64, gain);
    }
}
