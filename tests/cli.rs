//! The binary itself: the way from a public checkpoint to an extracted subnet, and every wrong turn on it.

#[path = "support/workplace.rs"]
mod workplace;

use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::path::PathBuf;
use workplace::Workplace;

const NAME: &str = "song_unet_edm_uncond";

fn fixture(file: &str) -> String {
    workplace::fixture(file).to_str().unwrap().to_owned()
}

impl Workplace {
    fn succeeds(&self, args: &[&str]) {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Everything in the directory by its path in it, with its content.
    fn content(&self) -> HashMap<PathBuf, Vec<u8>> {
        let mut content = HashMap::new();
        let mut left = vec![self.0.path().to_path_buf()];
        while let Some(dir) = left.pop() {
            for entry in std::fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path.clone());
                }
                let place = path.strip_prefix(self.0.path()).unwrap().to_owned();
                content.insert(place, std::fs::read(&path).unwrap_or_default());
            }
        }
        content
    }

    /// Runs a command that must fail as bad input does, with a sentence that has all `words`, and write nothing.
    fn refuses(&self, args: &[&str], words: &[&str]) {
        let before = self.content();
        let output = self.run(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        let sentence = stderr.lines().filter(|line| !line.starts_with("rank: ")).collect::<Vec<_>>();
        assert!(sentence.len() == 1 && sentence[0].starts_with("error: "), "{args:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{args:?}: no {word:?} in {stderr}");
        }
        assert!(self.content() == before, "{args:?} left something behind");
    }

    fn import(&self) {
        let (config, weights) = (fixture(&format!("{NAME}.json")), fixture(&format!("{NAME}.weights.safetensors")));
        self.succeeds(&["import", &weights, "--config", &config, "--out", "imported"]);
    }

    fn rank(&self) {
        let inputs = expected();
        self.succeeds(&["rank", "--model", "imported", "--inputs", &inputs, "--order", "global", "--out", "ranked"]);
    }

    fn allocate(&self) {
        let ratios = "0.25,0.5,0.75,1";
        self.succeeds(&["allocate", "--model", "ranked", "--ratios", ratios, "--target", "channels"]);
    }

    fn forward(&self, model: &str, subnet: &str, output: &str) {
        let input = expected();
        self.succeeds(&["forward", "--model", model, "--subnet", subnet, "--input", &input, "--output", output]);
    }

    fn tensors(&self, file: &str) -> HashMap<String, Tensor> {
        candle_core::safetensors::load(self.path(file), &Device::Cpu).unwrap()
    }

    fn save(&self, file: &str, tensors: &HashMap<String, Tensor>) {
        candle_core::safetensors::save(tensors, self.path(file)).unwrap();
    }

    /// Asserts that a file's `denoised` is the reference's tensor of this name.
    fn assert_denoised(&self, file: &str, want: &str) {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let got = self.tensors(file)["denoised"].clone();
        let want = &golden()[want];
        assert_eq!(got.dims(), want.dims());
        let (got, want) = (values(&got), values(want));
        let range = want.iter().fold(0f32, |max, value| max.max(value.abs()));
        let error = got.iter().zip(&want).map(|(g, w)| (g - w).abs() / range).fold(0.0, f32::max);
        // Float32 sums in another order.
        assert!(error < 1e-5, "{file}: {error:.1e} of the range");
    }
}

fn expected() -> String {
    fixture(&format!("{NAME}.expected.safetensors"))
}

fn golden() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(expected(), &Device::Cpu).unwrap()
}

#[test]
fn a_public_checkpoint_becomes_a_subnet_that_computes_what_the_reference_does() {
    let work = Workplace::new();
    work.import();
    work.forward("imported", "1.0", "imported.safetensors");
    work.assert_denoised("imported.safetensors", "denoised_full");

    work.rank();
    work.allocate();
    let importance = work.tensors("ranked/importance.safetensors");
    let reference: Vec<String> = golden().into_keys().filter(|name| name.starts_with("importance.")).collect();
    assert!(reference.iter().all(|name| importance.contains_key(name)) && importance.len() == reference.len());
    work.forward("ranked", "full", "full.safetensors");
    work.assert_denoised("full.safetensors", "denoised_full");
    work.forward("ranked", "0.5", "half.safetensors");
    work.assert_denoised("half.safetensors", "denoised_subnet_0.500");

    work.succeeds(&["extract", "--model", "ranked", "--subnet", "0.500", "--out", "half"]);
    work.forward("half", "full", "extracted.safetensors");
    work.assert_denoised("extracted.safetensors", "denoised_subnet_0.500");

    let format = ["--format", "torch-names"];
    work.succeeds(&[&["extract", "--model", "ranked", "--subnet", ".5", "--out", "torch"][..], &format].concat());
    work.succeeds(&["import", "torch", "--out", "back"]);
    work.forward("back", "full", "back.safetensors");
    work.assert_denoised("back.safetensors", "denoised_subnet_0.500");
}

#[test]
fn the_same_commands_give_the_same_bytes() {
    let [first, second] = [(); 2].map(|()| {
        let work = Workplace::new();
        work.import();
        work.rank();
        work.allocate();
        let extract = ["extract", "--model", "ranked", "--subnet", "0.500", "--out"];
        work.succeeds(&[&extract[..], &["half"]].concat());
        work.succeeds(&[&extract[..], &["torch", "--format", "torch-names"]].concat());
        work.forward("half", "full", "denoised.safetensors");
        work.content()
    });
    let mut files: Vec<_> = first.keys().collect();
    files.sort();
    assert!(files.iter().any(|file| file.ends_with("importance.safetensors")), "{files:?}");
    files.retain(|file| first[*file] != second[*file]);
    assert!(files.is_empty() && first.len() == second.len(), "{files:?}");
}

#[test]
fn a_file_with_a_network_under_both_names_is_imported_only_by_a_prefix() {
    let work = Workplace::new();
    let (config, weights) = (fixture(&format!("{NAME}.json")), fixture(&format!("{NAME}.weights.safetensors")));
    let average = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    let mut both = average.clone();
    both.extend(
        average.iter().map(|(name, tensor)| (name.strip_prefix("model.").unwrap().to_owned(), (tensor * 2.0).unwrap())),
    );
    work.save("both", &both);
    let import = ["import", "both", "--config", &config, "--out"];
    let name = "enc.16x16_block0.conv0.weight";
    let says = "both: holds several networks, whose names begin with '', 'model.': say which with --prefix";
    work.refuses(&[&import[..], &["new"]].concat(), &[says]);
    for (prefix, out, times) in [("model.", "wrapped", 1.0), ("", "bare", 2.0)] {
        work.succeeds(&[&import[..], &[out, "--prefix", prefix]].concat());
        let sum = |tensor: &Tensor| tensor.sum_all().unwrap().to_scalar::<f32>().unwrap();
        let imported = sum(&work.tensors(&format!("{out}/supernet.safetensors"))[name]);
        let wanted = times * sum(&average[&format!("model.{name}")]);
        assert!((imported - wanted).abs() < 1e-3 * wanted.abs(), "{prefix}: {imported} {wanted}");
    }
    let missing = [&import[..], &["new", "--prefix", "ema."]].concat();
    work.refuses(
        &missing,
        &["--prefix ema.: no tensor of both has a name that begins so; it has dec.", " and 406 more"],
    );
}

#[test]
fn ranking_again_composes_and_scores_stay_in_original_order() {
    let work = Workplace::new();
    work.import();
    let rank = |model: &str, method: &str, order: &str, out: &str| {
        let inputs = expected();
        let source: &[&str] = if method == "taylor" { &["--inputs", &inputs] } else { &[] };
        let args = ["rank", "--model", model, "--method", method, "--order", order, "--out", out];
        work.succeeds(&[&args[..], source].concat());
    };
    for method in ["taylor", "magnitude", "random"] {
        let once = format!("{method}-once");
        rank("imported", method, "within-group", &once);
        rank("imported", "random", "global", &format!("{method}-shuffled"));
        let twice = format!("{method}-twice");
        rank(&format!("{method}-shuffled"), method, "within-group", &twice);
        let scores = |dir: &str| work.tensors(&format!("{dir}/importance.safetensors"));
        let (once_scores, twice_scores) = (scores(&once), scores(&twice));
        for (name, once) in &once_scores {
            let values = |tensor: &Tensor| tensor.to_vec1::<f32>().unwrap();
            let range = values(once).into_iter().fold(0.0, f32::max);
            let pairs = values(once).into_iter().zip(values(&twice_scores[name]));
            let error = pairs.map(|(a, b)| (a - b).abs() / range).fold(0.0, f32::max);
            assert!(error < 1e-3, "{method}, {name}: {error}");
        }
        work.forward(&twice, "full", "twice.safetensors");
        work.assert_denoised("twice.safetensors", "denoised_full");
    }
}

#[test]
fn the_default_ladder_is_trimmed_to_what_is_reachable_and_an_asked_ratio_is_not() {
    let work = Workplace::new();
    work.import();
    work.rank();
    let output = work.run(&["allocate", "--model", "ranked"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains("left out 0.250, 0.375, 0.500: the smallest"), "{stderr}");
    let table = std::fs::read_to_string(work.path("ranked/subnets.toml")).unwrap();
    assert!(table.contains("target = \"macs\"") && table.contains("name = \"0.625\"") && !table.contains("\"0.500\""));
    let refused = ["allocate", "--model", "ranked", "--ratios", "0.1,0.5"];
    work.refuses(&refused, &["--ratios: 0.100 of the MACs cannot be reached", "smallest reachable ratio is 0."]);
    work.refuses(&["allocate", "--model", "ranked", "--ratios", "0.5,0.5"], &["--ratios: 0.500 stands twice"]);
    work.refuses(&["allocate", "--model", "ranked", "--align", "0"], &["--align"]);
    work.refuses(&["allocate", "--model", "imported"], &["importance.safetensors", "run `accordion rank`"]);
}

#[test]
fn import_refuses_what_does_not_fit_and_leaves_nothing() {
    let work = Workplace::new();
    let (config, weights) = (fixture(&format!("{NAME}.json")), fixture(&format!("{NAME}.weights.safetensors")));
    let import = |config: &str, weights: &str, words: &[&str]| {
        work.refuses(&["import", weights, "--config", config, "--out", "new/model"], words);
    };
    import("absent.json", &weights, &["absent.json: No such file"]);
    import(&config, "absent.safetensors", &["absent.safetensors: No such file"]);

    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(work.path("cut.safetensors"), &whole[..whole.len() / 2]).unwrap();
    import(&config, "cut.safetensors", &["cut.safetensors: is not a whole safetensors file"]);
    let foreign =
        [("html", "<!DOCTYPE html>", "is an HTML page"), ("lfs", "version https://git-lfs", "is a pointer of Git LFS")];
    for (file, content, problem) in foreign {
        std::fs::write(work.path(file), content).unwrap();
        import(&config, file, &[problem]);
    }

    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    let change = |pointer: &str, value: serde_json::Value| {
        let mut json = json.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[key] = value;
        std::fs::write(work.path("changed.json"), json.to_string()).unwrap();
    };
    change("/config/model_chanels", 32.into());
    import("changed.json", &weights, &["changed.json: config: unknown field `model_chanels`", "`model_channels`"]);
    change("/config/img_channels", 2.into());
    import("changed.json", &weights, &["changed.json: config.img_channels: 2 is neither 1 nor 3"]);
    change("/config/pipe_widths", serde_json::json!({ "enc.16x16_block0.conv": 33 }));
    import("changed.json", &weights, &["config.pipe_widths.enc.16x16_block0.conv: 33 is not a width from 0 to 32"]);
    change("/config/pipe_widths", serde_json::json!({ "enc.16x16_block0.cnv": 3 }));
    import("changed.json", &weights, &["config.pipe_widths.enc.16x16_block0.cnv: the network has no such pipe"]);
    change("/preconditioning", "flow".into());
    import("changed.json", &weights, &["changed.json: preconditioning: \"flow\" is none of edm, vp, ve"]);
    std::fs::write(work.path("broken.json"), "{").unwrap();
    import("broken.json", &weights, &["broken.json: is not a JSON object"]);

    let tensors = candle_core::safetensors::load(&weights, &Device::Cpu).unwrap();
    let name = "model.enc.16x16_block0.conv0.weight";
    let with = |tensor: Option<Tensor>| {
        let mut tensors = tensors.clone();
        tensors.remove(name);
        tensors.extend(tensor.map(|tensor| (name.to_owned(), tensor)));
        work.save("changed.safetensors", &tensors);
    };
    with(None);
    import(
        &config,
        "changed.safetensors",
        &["changed.safetensors: lacks 1 tensor of the network: model.enc.16x16_block0.conv0.weight"],
    );
    with(Some(tensors[name].narrow(0, 0, 16).unwrap().contiguous().unwrap()));
    import(
        &config,
        "changed.safetensors",
        &["changed.safetensors: has 1 tensor of another shape: ", name, " [16, 32, 3, 3], not [32, 32, 3, 3]"],
    );
    with(Some((&tensors[name] / 0.0).unwrap()));
    import(&config, "changed.safetensors", &["changed.safetensors: has values that are not finite in ", name]);
    with(Some(tensors[name].to_dtype(candle_core::DType::I64).unwrap()));
    import(
        &config,
        "changed.safetensors",
        &["changed.safetensors: has weights that are none of F64, F32, F16, BF16: ", name, "(I64)"],
    );

    for (names, words) in
        [("a,,b", "--classes: class 1 has an empty name"), ("a, a", "--classes: classes 0 and 1 are both `a`")]
    {
        let classes = ["import", &weights, "--classes", names, "--config", &config, "--out", "new/model"];
        work.refuses(&classes, &[words]);
    }
    let classes = ["import", &weights, "--classes", "a,b", "--config", &config, "--out", "new/model"];
    work.refuses(&classes, &["--classes: 2 names"]);
    let output = work.run(&["import", &weights, "--arch", "vgg", "--config", &config, "--out", "new"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && stderr.contains("song-unet"), "{stderr}");
}

#[test]
fn commands_on_a_model_refuse_what_does_not_fit_and_leave_nothing() {
    let work = Workplace::new();
    work.import();
    work.rank();
    work.allocate();
    let input = expected();
    let forward = |model: &str, subnet: &str, input: &str, words: &[&str]| {
        work.refuses(&["forward", "--model", model, "--subnet", subnet, "--input", input, "--output", "out"], words);
    };
    forward("absent", "full", &input, &["absent/model.toml: No such file"]);
    forward("ranked", "0.6", &input, &["subnet: `0.6` is none of 0.250, 0.500, 0.750, full"]);
    forward("ranked", "full", "absent", &["absent: No such file"]);
    let mut tensors = golden();
    let x = tensors.remove("x").unwrap();
    work.save("changed", &tensors);
    forward("ranked", "full", "changed", &["changed: x: tensor is missing"]);
    tensors.insert("x".into(), x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap());
    work.save("changed", &tensors);
    forward("ranked", "full", "changed", &["changed: x: shape [3, 16, 16, 1] is not [B, 1, 16, 16]"]);
    tensors.insert("x".into(), x.to_dtype(candle_core::DType::I64).unwrap());
    work.save("changed", &tensors);
    forward("ranked", "full", "changed", &["changed: x: dtype I64 is none of"]);
    tensors.insert("x".into(), x);
    tensors.insert("sigma".into(), Tensor::new(&[1f32, -1.0, 2.0], &Device::Cpu).unwrap());
    work.save("changed", &tensors);
    forward("ranked", "full", "changed", &["changed: sigma: -1 is not a positive noise level"]);
    tensors.insert("sigma".into(), Tensor::new(&[1f64, 2.0], &Device::Cpu).unwrap());
    work.save("changed", &tensors);
    forward("ranked", "full", "changed", &["changed: sigma: shape [2] is not [3]"]);

    let rank = |more: &[&str], words: &[&str]| {
        work.refuses(&[&["rank", "--model", "imported", "--order", "global"][..], more].concat(), words);
    };
    std::fs::create_dir(work.path("folder")).unwrap();
    let onto_a_folder = ["forward", "--model", "ranked", "--input", &input, "--output", "folder"];
    work.refuses(&onto_a_folder, &["folder: Is a directory"]);

    rank(&["--out", "new"], &["--method: taylor ranks on images: give --data CONFIG.toml or --inputs"]);
    rank(&["--out", "ranked", "--inputs", &input], &["--out ranked: is not empty"]);
    rank(&["--out", "new", "--inputs", "changed"], &["changed: sigma: shape [2] is not [3]"]);
    std::fs::write(work.path("data.toml"), "[data]\nformat = 'idx'\nimages = 'i'\nlabels = 'l'\nclases = []\n")
        .unwrap();
    rank(&["--out", "new", "--data", "data.toml"], &["data.toml, line", "clases"]);
    std::fs::write(work.path("data.toml"), "[data]\nformat = 'cifar10'\npath = 'absent'\n").unwrap();
    rank(&["--out", "new", "--data", "data.toml"], &["absent/data_batch_1.bin"]);

    let extract = ["extract", "--model", "ranked", "--out", "new", "--subnet"];
    work.refuses(&[&extract[..], &["0.3"]].concat(), &["subnet: `0.3` is none of"]);

    let damage = |file: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>, words: &[&str]| {
        let path = work.path(&format!("ranked/{file}"));
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, change(whole.clone())).unwrap();
        forward("ranked", "full", &input, words);
        std::fs::write(&path, whole).unwrap();
    };
    let replaced = |from: &'static str, to: &'static str| {
        move |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replacen(from, to, 1).into_bytes()
    };
    damage("supernet.safetensors", &|mut bytes| bytes.split_off(99), &["ranked/supernet.safetensors: is not a whole"]);
    let cut = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() - 4);
        bytes
    };
    damage("supernet.safetensors", &cut, &["ranked/supernet.safetensors: is not a whole"]);
    damage("model.toml", &replaced("format = 1", "format = 9"), &["ranked/model.toml: format: version 9 is not 1"]);
    damage("model.toml", &replaced("num_blocks", "num_block"), &["ranked/model.toml", "num_block"]);
    damage(
        "model.toml",
        &replaced("img_resolution = 16", "img_resolution = 6"),
        &["ranked/model.toml: backbone.img_resolution"],
    );
    damage("subnets.toml", &replaced("parameters = ", "parameters = 1"), &["ranked/subnets.toml: subnet 0.250"]);
    let full = "name = \"full\"";
    let no_name: &[&str] = &["ranked/subnets.toml, line ", "subnet \"fool\" is not full or a ratio"];
    damage("subnets.toml", &replaced(full, "name = \"fool\""), no_name);
    let no_full: &[&str] = &["ranked/subnets.toml: subnet: the last subnet must be `full`"];
    damage("subnets.toml", &replaced(full, "name = \"0.999\""), no_full);
}
