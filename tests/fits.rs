//! Tables that do not fit a stage are reported before anything runs.

use crate::lab::{Lab, TOY};

/// Returns the toy pipeline with a table that is made by this query from the images.
fn pipeline(table: &str, query: &str) -> String {
    let other = format!(
        "  other: {{ stage: sql, from: [images], with: {{ makes: row_per_row, query: \"select {query} from images\" }} }}\n  captions:"
    );
    assert!(TOY.contains(table), "the toy pipeline has no `{table}`");
    TOY.replace(table, &table.replace("[images", "[other")).replace("  captions:", &other)
}

#[test]
fn columns_of_another_type_are_refused() {
    let lab = Lab::new(TOY);
    let captions = "stage: caption, from: [images]";
    let metrics = "stage: evaluate, from: [images, anomaly_maps]";
    for (table, query, told) in [
        (captions, "image_id, class, 1 as caption", "column `caption` is Int64; Utf8 is read"),
        (captions, "image_id, 1 as class, caption", "column `class` is Int64; Utf8 is read"),
        (
            metrics,
            "image_id, class, mask, case when defect = 'good' then 0 else 1 end as label",
            "column `label` is Int64; Boolean is read, which `cast(label as boolean) as label` in a stage `sql` makes of it",
        ),
    ] {
        lab.write("pipeline.yaml", &pipeline(table, query));
        let plan = lab.vlmdiff(&["plan", "pipeline.yaml"]);
        assert_eq!(plan.code, Some(2), "{query}: {}", plan.stdout);
        assert!(plan.stderr.contains(told), "{query}: {}", plan.stderr);
    }
    let encoder = "    stage: train_text_encoder\n    from: [images, captions]";
    for table in [encoder, "stage: encode_text, from: [captions, text_encoder]"] {
        let numbers = "  numbers: { stage: sql, from: [captions], with: { makes: row_per_row, query: \"select image_id, 1 as caption from captions\" } }";
        let read = TOY.replace(table, &table.replace("captions", "numbers"));
        lab.write("pipeline.yaml", &read.replace("  text_encoder:\n", &format!("{numbers}\n  text_encoder:\n")));
        let plan = lab.vlmdiff(&["plan", "pipeline.yaml"]);
        assert!(plan.stderr.contains("column `caption` is Int64; Utf8 is read"), "{table}: {}", plan.stderr);
    }
    // the advice in the message works
    let label = "image_id, class, mask, cast(case when defect = 'good' then 0 else 1 end as boolean) as label";
    lab.write("pipeline.yaml", &pipeline(metrics, label));
    let plan = lab.vlmdiff(&["plan", "pipeline.yaml"]);
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
}

#[test]
fn networks_in_the_wrong_place_are_refused() {
    let lab = Lab::new(TOY);
    let refused = |pipeline: &str| {
        lab.write("pipeline.yaml", pipeline);
        let plan = lab.vlmdiff(&["plan", "pipeline.yaml"]);
        assert_eq!(plan.code, Some(2), "{}", plan.stdout);
        plan.stderr
    };
    let latents = "stage: encode_latents, from: [images, autoencoder]";
    let text = refused(&TOY.replace(latents, "stage: encode_latents, from: [images, text_encoder]"));
    assert!(text.contains("`autoencoder` names weights of another network: its configuration has `"), "{text}");
    let tables = "from: [images, latents, text_embeddings, autoencoder, denoiser]";
    let text = refused(&TOY.replace(tables, "from: [images, latents, text_embeddings, autoencoder, autoencoder]"));
    assert!(text.contains("`denoiser` names weights of another network: missing field `control`"), "{text}");
    let odd = "  odd: { stage: ingest, with: { dataset: folder, root: data, size: 34 } }\n  latents:";
    let text =
        refused(&TOY.replace("  latents:", odd).replace(latents, "stage: encode_latents, from: [odd, autoencoder]"));
    assert!(text.contains("images of 34x34 do not divide by 4, the factor of the autoencoder"), "{text}");
}

/// Features and latents of an autoencoder are not mixed up, and the parameters of one are not taken for the other's.
#[test]
fn features_and_their_denoiser_fit_each_other() {
    let lab = Lab::new(TOY);
    let refused = |from: &str, to: &str, told: &str| {
        assert!(TOY.contains(from), "the toy pipeline has no `{from}`");
        lab.write("pipeline.yaml", &TOY.replace(from, to));
        let plan = lab.vlmdiff(&["plan", "pipeline.yaml"]);
        assert_eq!(plan.code, Some(2), "{to}: {}", plan.stdout);
        assert!(plan.stderr.contains(told), "{to}: {}", plan.stderr);
    };
    let encoder = "from: [images], with: { extractor: efficientnet-lite0, layers: [8, 4] }";
    refused(
        encoder,
        "from: [images]",
        "latents come from one of an `autoencoder` in `from:` and the parameter `extractor`",
    );
    refused(encoder, "from: [images, autoencoder], with: { layers: [8] }", "`layers`: it belongs to an `extractor`");
    refused(encoder, "from: [images], with: { extractor: efficientnet-lite0, layers: [5] }", "has no layer 5");
    let training = "from: [images, feature_latents, text_embeddings]";
    let size = "feature_unet: { width: 16, levels: 2, norm_num_groups: 4, dilation: 2 }";
    refused(size, "feature_unet: { width: 18, norm_num_groups: 4 }", "and a multiple of norm_num_groups 4");
    refused(
        size,
        "feature_unet: { width: 16, levels: 2, norm_num_groups: 4, dilation: 99 }",
        "dilation 99 is larger than the grid of the latents, 4x4; write one up to 4",
    );
    refused(size, "config: { in_channels: 64 }", "the latents are features; the size of their U-Net is `feature_unet`");
    refused(
        training,
        "from: [images, feature_latents, text_embeddings, autoencoder]",
        "the latents are features, which no autoencoder decodes; leave it out of `from:`",
    );
    let named = "  feature_denoiser:\n    stage: train_denoiser\n    from: [images, feature_latents, ";
    refused(
        &format!("{named}text_embeddings]"),
        &format!("  unconditional: {{ stage: encode_text, from: [captions, text_encoder] }}\n{named}unconditional]"),
        "the list has `unconditional` at the place of `text_embeddings` of stage `train_denoiser`; name the inputs: \
         `from: { unconditional: unconditional, … }`",
    );
    refused(training, "from: [images, latents, text_embeddings]", "the latents are those of an autoencoder; name it");
    let scored = "from: [images, feature_latents, text_embeddings, feature_denoiser]";
    refused(
        scored,
        "from: [images, feature_latents, text_embeddings, denoiser]",
        "`denoiser` names weights of another network: missing field `unet`",
    );
    refused(
        scored,
        "from: [images, latents, text_embeddings, feature_denoiser]",
        "`denoiser` names weights of another network: missing field `control`",
    );
    let odd = "odd: { stage: ingest, with: { dataset: folder, root: data, size: 64 } }\n  latent_maps:";
    refused(
        "latent_maps:\n    stage: score_latents\n    from: [images, feature_latents, text_embeddings, feature_denoiser]",
        &format!(
            "{odd}\n    stage: score_latents\n    from: {{ images: odd, latents: latents, text_embeddings: text_embeddings, denoiser: denoiser }}"
        ),
        "its hint encoder shrinks images by 4, and `latents` are 8x8 for images of 64x64",
    );
    let coarse = "coarse: { stage: encode_latents, from: [images], with: { extractor: efficientnet-lite0, layers: [8] } }\n  latent_maps:";
    refused(
        "latent_maps:\n    stage: score_latents\n    from: [images, feature_latents, text_embeddings, feature_denoiser]",
        &format!(
            "{coarse}\n    stage: score_latents\n    from: {{ images: images, latents: coarse, text_embeddings: text_embeddings, denoiser: feature_denoiser }}"
        ),
        "it was trained on features of 64 channels and captions 16 wide, and these are of 40 channels and 16 wide",
    );
    let control = "control: { conditioning_embedding_out_channels: [4, 8, 8] }";
    let widths = "control: { form: none, conditioning_embedding_out_channels: [4, 8, 8] }";
    refused(control, widths, "`control`: of the form none there is no control branch; leave its other parameters out");
    let branch = "control: { form: none }\n      init: unet.safetensors\n      trainable: control";
    refused(
        &format!("{control}\n      trainable: all"),
        branch,
        "`trainable`: of the form none there is no control branch",
    );
    refused("with: { sigma: 1, score", "with: { timesteps: [3, 2], sigma: 1, score", "[3, 2] do not ascend");
    refused(
        "with: { sigma: 1, score",
        "with: { rule: { ddim: { guidance_scale: -1 } }, sigma: 1, score",
        "guidance_scale",
    );
    refused(
        "with: { sigma: 1, score",
        "with: { timesteps: [1000], sigma: 1, score",
        "no timestep 1000; its last is 999",
    );
}

/// The sampler of the toy pipeline asks at 501 and 1, with the spacing `trailing` at 999 and 499.
#[test]
fn denoiser_is_asked_at_no_timestep_below_those_of_its_training() {
    let lab = Lab::new(TOY);
    let plan = |settings: &str| {
        let settings = settings.split_whitespace().flat_map(|setting| ["--set", setting]);
        lab.vlmdiff(&["plan", "pipeline.yaml"].into_iter().chain(settings).collect::<Vec<_>>())
    };
    let (images, features) = ("denoiser.min_timestep=400", "feature_denoiser.min_timestep=400");
    let trailing = "reconstructions.sampler.timestep_spacing=trailing";
    for (settings, lowest) in [
        (images.to_owned(), 1),
        (format!("{images} {trailing} reconstructions.sampler.inversion=[1,301,501]"), 301),
        (features.to_owned(), 1),
        (format!("{features} latent_maps.rule=reconstruction"), 150),
        (format!("{features} latent_maps.timesteps=[399]"), 399),
        (format!("{features} latent_maps.rule=inversion latent_maps.timesteps=[450,600]"), 0),
        (format!("{features} latent_maps.rule={{\"ddim\":{{}}}}"), 1),
    ] {
        let ended = plan(&settings);
        assert_eq!(ended.code, Some(2), "{settings}: {}", ended.stdout);
        let told = format!("the denoiser is asked at timestep {lowest}, and its training has none below 400: ");
        assert!(ended.stderr.contains(&told), "{settings}: {}", ended.stderr);
    }
    for settings in [
        format!("{images} {trailing}"),
        format!("{images} {trailing} reconstructions.sampler.inversion=[1,401,501]"),
        format!("{features} latent_maps.timesteps=[400]"),
        format!(
            "{features} latent_maps.rule={{\"ddim\":{{\"sampler\":{{\"timestep_spacing\":\"trailing\",\"num_inference_steps\":2}}}}}}"
        ),
    ] {
        let ended = plan(&settings);
        assert_eq!(ended.code, Some(0), "{settings}: {}", ended.stderr);
    }
}

#[test]
fn unknown_device_is_refused() {
    let lab = Lab::new(TOY);
    for name in ["gpu", "cuda:x"] {
        let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--device", name]);
        let told = format!("`{name}` is no device; use auto, cpu, cuda or cuda:N");
        assert!(ended.code == Some(2) && ended.stderr.contains(&told), "{}", ended.stderr);
    }
}

/// A machine with a driver looks for the GPU when a network is loaded.
#[test]
fn device_without_a_driver_is_refused_before_anything_runs() {
    if std::path::Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let lab = Lab::new(TOY);
    for device in ["cuda", "cpu,cuda:1"] {
        let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--device", device]);
        let told = "this machine has no NVIDIA driver; use --device cpu, or --device auto";
        assert!(ended.code == Some(2) && ended.stderr.contains(told), "{}", ended.stderr);
        assert!(!lab.path(".vlmdiff").exists());
    }
}

#[test]
fn unknown_names_are_refused_at_any_depth() {
    let lab = Lab::new(TOY);
    for (set, told) in [
        (
            "text_encoder.config.hiden_size=8",
            "unknown parameter `hiden_size`; did you mean `hidden_size`?; `config` takes ",
        ),
        (
            "reconstructions.sampler.steps=5",
            "unknown parameter `steps`; did you mean `steps_offset`?; `sampler` takes num_inference_steps, ",
        ),
    ] {
        let ended = lab.vlmdiff(&["plan", "pipeline.yaml", "--set", set]);
        assert!(ended.code == Some(2) && ended.stderr.contains(told), "{}", ended.stderr);
    }
    // A parameter that is set to what it is without being set is no other pipeline.
    for set in ["images.good=[]", "images.columns={}", "features.choose=null"] {
        let digests = |arguments: &[&str]| lab.vlmdiff(&[&["plan", "pipeline.yaml", "--json"], arguments].concat());
        let (plain, same) = (digests(&[]), digests(&["--set", set]));
        assert_eq!((same.code, same.stdout), (Some(0), plain.stdout), "{set}: {}", same.stderr);
    }
}
