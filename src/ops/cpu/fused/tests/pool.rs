use super::super::Map;
use super::super::pool::pool;
use super::{Rig, dense, joined, map, sample_values, side_by_side};
use crate::ops::cpu::conv::Places;
use crate::ops::cpu::pool::{Pooling, Reduce};
use crate::ops::cpu::testing::assert_close;

#[test]
fn maps_side_by_side_are_pooled_as_one() {
    let mut rig = Rig::new(1);
    let size @ [height, width] = [7, 9];
    let windows = [Places::square(3, 2, 0), Places::same([3, 3]), Places::new(size, 1, [0, 0])];
    for channels in [vec![5], vec![16, 32], vec![17, 3, 1, 40]] {
        for (reduce, places) in windows.into_iter().flat_map(|places| [(Reduce::Max, places), (Reduce::Mean, places)]) {
            let part =
                |index: usize, sample: usize| sample_values(index as u64, sample, height * width * channels[index]);
            let got = rig.run(|workspace, samples| {
                let parts = channels.iter().enumerate().map(|(index, &channels)| {
                    map(workspace, [height, width, channels], &joined(samples, |sample| part(index, sample)))
                });
                let parts: Vec<Map> = parts.collect();
                let [out_height, out_width] = places.on(size);
                let mut y = workspace.arena.map([samples.len(), out_height, out_width, channels.iter().sum()]);
                pool(workspace, &parts.iter().collect::<Vec<_>>(), reduce, places, &mut y);
                parts.into_iter().for_each(|part| workspace.arena.put(part));
                dense(workspace, y)
            });
            // Against the pool of one plain map, which has tests of its own.
            let want = joined(&[0, 1, 2], |sample| {
                let parts: Vec<_> = (0..channels.len()).map(|index| (channels[index], part(index, sample))).collect();
                let x: Vec<f32> = side_by_side(&parts).into_iter().map(|value| value as f32).collect();
                let channels = channels.iter().sum::<usize>();
                let mut y = vec![f32::NAN; places.on(size).iter().product::<usize>() * channels];
                Pooling { reduce, places, size }.run(&x, channels, &mut y);
                y
            });
            assert_close(&got, &want.iter().map(|&value| f64::from(value)).collect::<Vec<_>>(), 0.0);
        }
    }
}
