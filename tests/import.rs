//! Checkpoints as people have them: what is read, what is recognised, and what is refused.

#[allow(dead_code, reason = "only the networks are of use here")]
#[path = "support/golden.rs"]
mod golden;
#[path = "support/workplace.rs"]
mod workplace;

use accordion::checkpoint::{self, Checkpoint, Part, StateDict};
use accordion::nets::Backbone;
use accordion::nets::public_config::Kind;
use accordion::nets::recognition::{Found, Hints, find};
use golden::{NAMES, golden};
use proptest::prelude::*;
use std::process::Output;
use workplace::{Workplace, fixture};

fn open(file: &str) -> Checkpoint {
    checkpoint::open(&fixture(file)).unwrap()
}

fn keys(checkpoint: &Checkpoint) -> Vec<&str> {
    checkpoint.parts.iter().map(|part| part.key.as_str()).collect()
}

/// Asserts that two have the same tensors, by name, shape and value.
fn assert_same(got: &StateDict, want: &StateDict) {
    assert_eq!(got.names().collect::<Vec<_>>(), want.names().collect::<Vec<_>>());
    for name in want.names() {
        assert_eq!(got.shape(name), want.shape(name), "{name}");
        assert_eq!(got.values([name]).unwrap(), want.values([name]).unwrap(), "{name}");
    }
}

impl Workplace {
    fn copy(&self, file: &str, to: &str) {
        std::fs::copy(fixture(file), self.path(to)).unwrap();
    }

    fn import(&self, args: &[&str]) -> Output {
        self.run(&[&["import"], args].concat())
    }

    /// Imports, and returns the line that says what.
    fn imports(&self, args: &[&str]) -> String {
        let output = self.import(args);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {stderr}");
        stderr
    }

    fn refuses(&self, args: &[&str], words: &[&str]) {
        let output = self.import(&[args, &["--out", "new"]].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{args:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{args:?}: no {word:?} in {stderr}");
        }
        assert!(!self.path("new").exists());
    }
}

#[test]
fn a_pickle_of_nvlabs_becomes_the_model_that_its_safetensors_become() {
    let work = Workplace::new();
    for (file, to) in [("pkl", "net.pkl"), ("weights.safetensors", "net.safetensors"), ("json", "net.json")] {
        work.copy(&format!("song_unet_edm_uncond.{file}"), to);
    }
    let says = work.imports(&["net.pkl", "--out", "pickle", "--name", "x"]);
    let network = "song-unet for images of 16x16x1, unconditional, 1.3 M parameters, edm";
    assert_eq!(says, format!("import: net.pkl, `ema`, names after `model.`: {network}; told by the file\n"));
    let says = work.imports(&["net.safetensors", "--config", "net.json", "--out", "config", "--name", "x"]);
    assert_eq!(says, format!("import: net.safetensors, names after `model.`: {network}; told by the config\n"));
    let says = work.imports(&["net.safetensors", "--preconditioning", "edm", "--out", "bare", "--name", "x"]);
    assert_eq!(says, format!("import: net.safetensors, names after `model.`: {network}; told by names and shapes\n"));
    for file in ["supernet.safetensors", "model.toml"] {
        let read = |dir| std::fs::read(work.path(dir).join(file)).unwrap();
        assert!(read("pickle") == read("config") && read("bare") == read("config"), "{file}");
    }
}

#[test]
fn the_options_of_a_network_follow_from_its_names_and_shapes() {
    for name in NAMES.into_iter().filter(|name| *name != "u_vit_uncond") {
        let model = golden(name).model;
        let preconditioning = model.network.preconditioning();
        let hints = Hints { preconditioning: Some(Kind::of(preconditioning)), ..Hints::default() };
        let found = find(&open(&format!("{name}.weights.safetensors")), &hints).unwrap();
        assert_eq!(found.network.preconditioning(), preconditioning);
        assert_eq!(found.network.spec(), model.network.spec(), "{name}");
        match found.backbone {
            // At 16x16 its channels are too few for a head, so that nothing shows that attention was asked for.
            Backbone::Adm(config) => assert_eq!(config.attn_resolutions, [8]),
            backbone => assert_eq!(backbone, model.card.backbone, "{name}"),
        }
    }
}

#[test]
fn a_u_vit_needs_to_be_told_its_heads_unless_it_is_of_a_published_width() {
    let work = Workplace::new();
    for file in ["u_vit_uncond.pth", "u_vit_uncond_nested.pth", "u_vit_uncond.weights.safetensors", "u_vit_uncond.json"]
    {
        work.copy(file, file);
    }
    let says = "u_vit_uncond.pth: is a U-ViT of 64 channels, whose number of heads cannot be told from its tensors";
    work.refuses(&["u_vit_uncond.pth"], &[says, "give --config with num_heads"]);
    let import = |file, out| work.imports(&[file, "--config", "u_vit_uncond.json", "--out", out, "--name", "x"]);
    let says = import("u_vit_uncond_nested.pth", "nested");
    let network = "u-vit for images of 16x16x3, unconditional, 0.3 M parameters, vp; told by the config";
    assert_eq!(says, format!("import: u_vit_uncond_nested.pth, `ema`, names after `module.`: {network}\n"));
    import("u_vit_uncond.pth", "plain");
    import("u_vit_uncond.weights.safetensors", "safetensors");
    let read = |dir| std::fs::read(work.path(dir).join("supernet.safetensors")).unwrap();
    assert!(read("nested") == read("safetensors") && read("plain") == read("safetensors"));
}

#[test]
fn a_file_of_torch_holds_the_tensors_of_the_safetensors_whatever_their_views() {
    let want = open("u_vit_uncond.weights.safetensors").parts.remove(0).tensors;
    let plain = open("u_vit_uncond.pth");
    assert_eq!(keys(&plain), [""]);
    assert_same(&plain.parts[0].tensors, &want);
    // Views of one storage at different offsets, transposed weights, names after `module.`, beside numbers and None.
    let nested = open("u_vit_uncond_nested.pth");
    assert_eq!(keys(&nested), ["ema"]);
    let [ema] = &nested.parts[0].tensors.unwrapped()[..] else { panic!("all names are wrapped alike") };
    assert_eq!(ema.prefix(), "module.");
    assert_same(ema, &want);
    assert_same(&nested.parts[0].tensors.under("module."), &want);
}

#[test]
fn a_pickle_of_nvlabs_says_its_tensors_by_path_and_its_arguments() {
    let pickle = open("song_unet_edm_uncond.pkl");
    assert_eq!(keys(&pickle), ["ema"]);
    assert_same(&pickle.parts[0].tensors, &open("song_unet_edm_uncond.weights.safetensors").parts[0].tensors);
    let described = pickle.parts[0].described.as_ref().unwrap();
    assert_eq!((described.class.as_str(), &described.attributes["sigma_data"]), ("EDMPrecond", &0.5.into()));
    let model = described.model.as_ref().unwrap();
    assert_eq!((model.class.as_str(), &model.arguments["model_channels"]), ("SongUNet", &32.into()));
}

#[test]
fn files_that_would_run_code_are_refused_by_the_name_of_what_they_call() {
    let work = Workplace::new();
    for file in ["malicious.pkl", "malicious.pth", "malicious_inner.pkl"] {
        work.copy(file, file);
        work.refuses(&[file], &[&format!("{file}: needs posix.system, which is none of the constructors")]);
    }
}

/// A copy of a golden's tensors with other names, in a file.
fn renamed(work: &Workplace, file: &str, golden: &str, names: impl Fn(&str) -> Vec<String>) {
    let tensors = candle_core::safetensors::load(fixture(golden), &candle_core::Device::Cpu).unwrap();
    let renamed = tensors.iter().flat_map(|(name, tensor)| names(name).into_iter().map(|name| (name, tensor.clone())));
    candle_core::safetensors::save(&renamed.collect(), work.path(file)).unwrap();
}

const EDM: &str = "song_unet_edm_uncond.weights.safetensors";

fn found(work: &Workplace, file: &str) -> Found {
    let hints = Hints { preconditioning: Some(Kind::Edm), ..Hints::default() };
    find(&checkpoint::open(&work.path(file)).unwrap(), &hints).unwrap()
}

#[test]
fn what_wraps_a_network_is_no_part_of_its_names() {
    let work = Workplace::new();
    let want = open(EDM).parts[0].tensors.under("model.");
    for prefix in ["", "model.", "module.", "_orig_mod.module.model."] {
        renamed(&work, "net", EDM, |name| vec![name.replacen("model.", prefix, 1)]);
        let found = found(&work, "net");
        assert_eq!(found.tensors.prefix(), prefix);
        assert_same(&found.tensors, &want);
    }
    // Two networks in one file.
    renamed(&work, "net", EDM, |name| vec![name.to_owned(), format!("module.{name}")]);
    let edm = ["--preconditioning", "edm"];
    let says = ["holds several networks, whose names begin with 'model.', 'module.model.': say which with --prefix"];
    work.refuses(&[&["net"][..], &edm].concat(), &says);
    let says = work.imports(&[&["net", "--out", "out", "--prefix", "module.model."][..], &edm].concat());
    assert!(says.contains("net, names after `module.model.`: song-unet"), "{says}");
}

#[test]
fn of_several_networks_under_keys_one_is_asked_for() {
    let mut checkpoint = open(EDM);
    let part = |key: &str| Part { key: key.into(), ..open(EDM).parts.remove(0) };
    checkpoint.parts = vec![part("model"), part("ema")];
    let hints = Hints { preconditioning: Some(Kind::Edm), ..Hints::default() };
    let refusal = find(&checkpoint, &hints).unwrap_err().to_string();
    assert!(refusal.ends_with(": holds several networks, under `model`, `ema`: say which with --key"), "{refusal}");
    let found = find(&checkpoint, &Hints { key: Some("ema"), ..hints }).unwrap();
    assert!(found.to_string().contains(", `ema`, names after `model.`: song-unet"), "{found}");
    // Among tensors that are no network's, as an optimiser's, the one that is one.
    checkpoint.parts[0].tensors = open("u_vit_uncond.pth").parts.remove(0).tensors.under("in_blocks.");
    assert!(find(&checkpoint, &hints).unwrap().to_string().contains(", `ema`, "));
}

#[test]
fn what_a_checkpoint_does_not_say_is_asked_for() {
    let work = Workplace::new();
    work.copy(EDM, "net.safetensors");
    work.copy("song_unet_edm_uncond.pkl", "net.pkl");
    work.copy("song_unet_ve_ncsnpp.json", "other.json");
    let says = "net.safetensors: is a network of song-unet, whose preconditioning cannot be told from its tensors: give --preconditioning";
    work.refuses(&["net.safetensors"], &[says]);
    work.refuses(
        &["net.pkl", "--preconditioning", "vp"],
        &["--preconditioning: vp is not edm, which the checkpoint says"],
    );
    let says = ["--key: net.pkl has no tensors under `model`, but under `ema`"];
    work.refuses(&["net.pkl", "--key", "model"], &says);
    work.imports(&["net.pkl", "--key", "ema", "--out", "out"]);
    let says = [
        "net.safetensors: lacks 29 tensors of the network: model.map_noise.freqs, model.enc.8x8_aux_residual.weight, ",
        " and 19 more; has 4 tensors of another shape: model.map_layer0.weight [128, 32], not [128, 64], ",
        "; has 84 tensors that the network does not have: model.dec.4x4_block0.affine.bias, ",
        " and 74 more",
    ];
    work.refuses(&["net.safetensors", "--config", "other.json"], &says);

    // Another network, which is none that is known.
    renamed(&work, "other.safetensors", EDM, |name| vec![format!("x.{name}")]);
    let says = [
        "other.safetensors: holds no network that is known, which is SongUNet, DhariwalUNet, UViT",
        "x.model.",
        " and 198 more",
    ];
    work.refuses(&["other.safetensors"], &says);
    std::fs::write(work.path("none.pkl"), b"\x80\x02}.").unwrap();
    work.refuses(&["none.pkl"], &["none.pkl: has no named tensors"]);
}

#[test]
fn a_network_with_another_filter_than_its_config_says_is_refused() {
    let work = Workplace::new();
    work.copy("song_unet_vp_cond.weights.safetensors", "net.safetensors");
    let json = std::fs::read_to_string(fixture("song_unet_vp_cond.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["config"]["resample_filter"] = serde_json::json!([1, 3, 3, 1]);
    std::fs::write(work.path("net.json"), json.to_string()).unwrap();
    let says = ["up.conv0.resample_filter: is not the filter of the network, [1.0, 3.0, 3.0, 1.0]"];
    work.refuses(&["net.safetensors", "--config", "net.json"], &says);
}

#[test]
fn a_directory_holds_one_checkpoint_and_maybe_its_config() {
    let work = Workplace::new();
    let dir = |name: &str| std::fs::create_dir(work.path(name)).unwrap();
    dir("net");
    work.refuses(&["net"], &["net: has no file that ends in one of .safetensors, .pth, .pt, .ckpt, .pkl"]);
    work.copy(EDM, "net/a.safetensors");
    work.refuses(&["net"], &["give --preconditioning"]);
    work.copy("song_unet_edm_uncond.json", "net/config.json");
    let says = work.imports(&["net", "--out", "out"]);
    assert!(says.starts_with("import: net/a.safetensors, ") && says.ends_with("told by the config\n"), "{says}");
    // A config of the file's own name goes before.
    std::fs::write(work.path("net/a.json"), "{}").unwrap();
    work.refuses(&["net"], &["net/a.json: config: is missing"]);
    work.copy("song_unet_edm_uncond.pkl", "net/b.pkl");
    work.refuses(&["net"], &["net: has several checkpoints, a.safetensors, b.pkl; give one of them"]);
    std::fs::write(work.path("net/model_index.json"), "{}").unwrap();
    work.refuses(
        &["net"],
        &["net/model_index.json: seems to be of no class; pipelines of Stable Diffusion 1.x are read"],
    );
}

/// Reads bytes as a checkpoint, to the last value and the options of a network.
fn read(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net");
    std::fs::write(&path, bytes).unwrap();
    let Ok(checkpoint) = checkpoint::open(&path) else { return };
    for part in &checkpoint.parts {
        for name in part.tensors.names() {
            // Whatever it is, it is a value or a refusal.
            let _ = part.tensors.values([name]);
        }
    }
    if let Ok(found) = find(&checkpoint, &Hints { preconditioning: Some(Kind::Edm), ..Hints::default() }) {
        let _ = found.params();
    }
}

/// Where the bytes of a file are that say what is in it, not what the values are: all others change nothing but values.
fn structure(file: &str) -> (Vec<u8>, usize) {
    let bytes = std::fs::read(fixture(file)).unwrap();
    let end = match file {
        // The first module; those after it have the same form.
        "song_unet_edm_uncond.pkl" => 40_000,
        _ => 8_000.min(bytes.len()),
    };
    (bytes, end)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn changed_files_are_read_or_refused(
        file in prop::sample::select(vec![
            "u_vit_uncond.pth", "u_vit_uncond_nested.pth", "song_unet_edm_uncond.pkl", "malicious.pth", "malicious_inner.pkl",
        ]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        from_the_end in any::<bool>(),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let (mut bytes, end) = structure(file);
        for (place, value) in changes {
            let place = place.index(end);
            // The directory of a zip is at its end.
            let place = if from_the_end { bytes.len() - 1 - place } else { place };
            bytes[place] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        read(&bytes);
    }

    #[test]
    fn programs_of_any_opcodes_are_read_or_refused(
        program in prop::collection::vec(
            prop_oneof![
                prop::sample::select(b".(0N)]}ltaesudRbQ2h\x85\x86\x87\x81\x88\x8f\x90\x91\x92\x93\x94".to_vec()).prop_map(|op| vec![op]),
                any::<u8>().prop_map(|value| vec![b'K', value]),
                any::<u8>().prop_map(|index| vec![b'h', index % 8]),
                prop::sample::select(vec!["collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2", "torch\nFloatStorage"])
                    .prop_map(|name| format!("c{name}\n").into_bytes()),
                "[a-z]{0,4}".prop_map(|text| [&[0x8c, text.len() as u8][..], text.as_bytes()].concat()),
                any::<[u8; 3]>().prop_map(|bytes| bytes.to_vec()),
            ],
            0..200,
        ),
    ) {
        read(&[&[0x80, 2][..], &program.concat(), b"."].concat());
    }
}

#[test]
fn small_files_cannot_ask_for_much() {
    // Lists of lists of lists, each twice in the next: 2^60 values to whoever follows them all; and a list in itself.
    let mut doubled = b"\x80\x04]\x94".to_vec();
    (0..60u8).for_each(|index| doubled.extend([b'(', b'h', index, b'h', index, b't', 0x94]));
    read(&[&doubled[..], b"."].concat());
    read(b"\x80\x04]\x94h\x00a.");
    read(b"\x80\x04}\x94K\x01h\x00s.");
    // A million tuples in each other, which a destructor that recurses would not survive.
    read(&[&b"\x80\x04N"[..], &[0x85; 1_000_000], b"."].concat());
    // Lengths that are not there.
    read(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.");
    read(b"\x80\x04\x8b\xff\xff\xff\x7f.");
}
