//! What holds for every network, whatever its family and its shape: tried on random networks with random weights.

#[path = "support/company.rs"]
mod company;
#[path = "support/compare.rs"]
mod compare;
#[path = "support/random.rs"]
mod random;

use accordion::ImageShape;
use accordion::checkpoint;
use accordion::diffusion::Level;
use accordion::nets::model::Card;
use accordion::nets::recognition::{Hints, find};
use accordion::nets::sliced::Sliced;
use accordion::nets::{Condition, HostRunner, Model, Rows, Threads, public, public_config};
use accordion::ops::Tape;
use accordion::ops::cpu::fused::Layer;
use accordion::supernet::{Order, Subnet, Supernet};
use candle_core::{DType, Tensor};
use company::assert_a_sample_is_the_same_in_any_company;
use compare::relative_error;
use proptest::prelude::*;
use random::{Shape, all_shapes};
use std::collections::HashSet;

/// Float32 sums in another order, as a share of the largest value.
const TOLERANCE: f64 = 1e-5;

/// What a network is called on.
struct Batch {
    image: ImageShape,
    x: Vec<f32>,
    levels: Vec<Level>,
    conditions: Vec<Condition>,
}

impl Batch {
    fn new(shape: &Shape, model: &Model) -> Self {
        let (x, sigma, _) = shape.batch(model);
        let levels = sigma.into_iter().map(Level::from).collect();
        Self { image: model.image(), x, levels, conditions: shape.conditions(model) }
    }

    fn rows(&self) -> Rows<'_> {
        Rows { image: self.image, x: &self.x, beside: &[], levels: &self.levels, conditions: &self.conditions }
    }
}

fn denoise(model: &Model, subnet: usize, batch: &Batch) -> Vec<f32> {
    HostRunner::new(model, Threads::ALL).unwrap().call(subnet, &batch.rows())
}

fn sliced(model: &Model, subnet: usize) -> Sliced {
    Sliced::new(model.network.spec(), &model.supernet, &model.widths(subnet)).unwrap()
}

const ORDERS: [Order; 2] = [Order::Global, Order::WithinGroup];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_full_width_subnet_reproduces_the_imported_network(shape in all_shapes()) {
        let imported = shape.model();
        let batch = Batch::new(&shape, &imported);
        let want = denoise(&imported, 0, &batch);
        for order in ORDERS {
            let ranked = shape.allocated(order);
            let full = ranked.subnet("full").unwrap();
            let error = relative_error(&denoise(&ranked, full, &batch), &want);
            prop_assert!(error < TOLERANCE, "{order:?}: {error:.1e}");
        }
    }

    #[test]
    fn a_subnet_reproduces_its_extraction_in_both_formats(shape in all_shapes()) {
        let dir = tempfile::tempdir().unwrap();
        for order in ORDERS {
            let model = shape.allocated(order);
            let batch = Batch::new(&shape, &model);
            for subnet in 0..model.subnets().len() {
                let want = denoise(&model, subnet, &batch);
                let extracted = model.extract(subnet).unwrap();
                prop_assert_eq!(extracted.subnets()[0].parameters, model.subnets()[subnet].parameters);
                prop_assert_eq!(extracted.subnets()[0].macs, model.subnets()[subnet].macs);

                extracted.write(dir.path(), DType::F32).unwrap();
                let loaded = Model::open(dir.path()).unwrap();
                let error = relative_error(&denoise(&loaded, 0, &batch), &want);
                prop_assert!(error < TOLERANCE, "{order:?}, subnet {subnet}: {error:.1e}");

                let (json, weights) = (dir.path().join("config.json"), dir.path().join("weights.safetensors"));
                public::write(&extracted, &weights).unwrap();
                public_config::write(&extracted, &json).unwrap();
                let hints = Hints { config: Some(&json), ..Hints::default() };
                let found = find(&checkpoint::open(&weights).unwrap(), &hints).unwrap();
                let params = found.params().unwrap();
                let supernet = Supernet::original(found.network.spec(), params);
                let card = Card::new("public".into(), found.backbone, found.network.preconditioning(), vec![]);
                let public = Model::unallocated(card, supernet).unwrap();
                let error = relative_error(&denoise(&public, 0, &batch), &want);
                prop_assert!(error < TOLERANCE, "{order:?}, subnet {subnet} under public names: {error:.1e}");
            }
        }
    }

    #[test]
    fn an_extraction_can_be_cut_like_the_supernet(shape in all_shapes()) {
        for order in ORDERS {
            let model = shape.allocated(order);
            let batch = Batch::new(&shape, &model);
            let [narrow, wide] = [model.subnet("0.4").unwrap(), model.subnet("0.6").unwrap()];
            let want = denoise(&model, narrow, &batch);
            let extracted = model.extract(wide).unwrap();
            let row = Subnet::new(extracted.network.spec(), 0.4, &model.widths(narrow));
            let extracted = extracted.with_subnets("channels", vec![row]).unwrap();
            let again = extracted.extract(extracted.subnet("0.4").unwrap()).unwrap();
            let error = relative_error(&denoise(&again, 0, &batch), &want);
            prop_assert!(error < TOLERANCE, "{order:?}: {error:.1e}");
        }
    }

    #[test]
    fn smaller_subnets_are_prefixes_of_larger_ones(shape in all_shapes()) {
        let model = shape.allocated(Order::Global);
        let spec = model.network.spec();
        let [narrow, wide] = [model.subnet("0.4").unwrap(), model.subnet("0.6").unwrap()];
        let widths = model.widths(narrow);
        prop_assert!(widths.nests_in(&model.widths(wide)));
        let (small, large) = (sliced(&model, narrow), sliced(&model, wide));
        let pairs = small.leaves().iter().zip(large.leaves());
        for (param, (small, large)) in spec.params.iter().zip(pairs) {
            let mut prefix = large.clone();
            for slice in &param.slices {
                prefix = prefix.narrow(slice.axis, 0, widths.0[slice.pipe]).unwrap();
            }
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            prop_assert_eq!(values(&prefix), values(small), "{}", &param.name);
        }
    }

    #[test]
    fn inference_computes_what_the_network_that_is_trained_computes(shape in all_shapes()) {
        for order in ORDERS {
            let model = shape.allocated(order);
            let batch = Batch::new(&shape, &model);
            for subnet in 0..model.subnets().len() {
                let Batch { x, levels, .. } = &batch;
                let sigma: Vec<f64> = levels.iter().map(|level| level.sigma).collect();
                let context = batch.rows().texts(model.network.program().context_elements());
                let (weights, classes) = (sliced(&model, subnet), batch.rows().classes());
                let call = model.network.call(&Tape::off(), &weights, x, &sigma, &classes, &context).unwrap();
                let error = relative_error(&denoise(&model, subnet, &batch), &call.denoised);
                prop_assert!(error < TOLERANCE, "{order:?}, subnet {subnet}: {error:.1e}");
            }
        }
    }

    #[test]
    fn the_layers_of_a_timed_call_do_the_work_that_its_subnet_counts(shape in all_shapes()) {
        let model = shape.allocated(Order::Global);
        let batch = Batch::new(&shape, &model);
        let rows = batch.rows();
        let mut runner = HostRunner::new(&model, Threads::ALL).unwrap();
        for (subnet, row) in model.subnets().iter().enumerate() {
            let (denoised, layers) = runner.timed_call(subnet, &rows);
            prop_assert_eq!(&denoised, &runner.call(subnet, &rows));
            // The count has a block's skip on the map after the upsampling, which runs on the quarter of it before.
            let saved = |layer: &&Layer| layer.name.ends_with("_up.skip");
            let saved: u64 = layers.iter().filter(saved).map(|layer| 3 * layer.macs).sum();
            let work: u64 = layers.iter().map(|layer| layer.macs).sum();
            prop_assert_eq!(work + saved, rows.count() as u64 * row.macs);
            let names: HashSet<&str> = layers.iter().map(|layer| layer.name.as_str()).collect();
            prop_assert_eq!(names.len(), layers.len(), "no name stands twice");
        }
    }

    #[test]
    fn a_sample_is_the_same_in_any_company_at_any_place_on_any_number_of_threads(shape in all_shapes()) {
        let model = shape.allocated(Order::Global);
        let batch = Batch::new(&shape, &model);
        assert_a_sample_is_the_same_in_any_company(&model, &batch.rows());
    }
}
