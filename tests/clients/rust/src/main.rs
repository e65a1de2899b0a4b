//! Tests the Rust clients async-openai and ollama-rs.

use std::error::Error;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::types::embeddings::CreateEmbeddingRequestArgs;
use ollama_rs::Ollama;
use ollama_rs::generation::embeddings::request::GenerateEmbeddingsRequest;

/// Bound of tests/it/embeddings.rs between a text alone and in a batch.
const TOLERANCE: f32 = 1e-6;

fn check(client: &str, found: &[Vec<f32>], wanted: &[Vec<f32>]) {
    assert_eq!(found.len(), wanted.len(), "{client}");
    for (found, wanted) in found.iter().zip(wanted) {
        let differences = found.iter().zip(wanted).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0, f32::max);
        assert!(found.len() == wanted.len() && worst <= TOLERANCE, "{client}: {worst}");
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("CAXTON_URL")?;
    let expected = std::fs::read(std::env::var("CAXTON_EXPECTED")?)?;
    let expected: serde_json::Value = serde_json::from_slice(&expected)?;
    let model: String = serde_json::from_value(expected["model"].clone())?;
    let texts: Vec<String> = serde_json::from_value(expected["texts"].clone())?;
    let wanted: Vec<Vec<f32>> = serde_json::from_value(expected["vectors"].clone())?;

    let config = OpenAIConfig::new().with_api_base(format!("{url}/v1")).with_api_key("unused");
    let openai = Client::with_config(config);
    let request = CreateEmbeddingRequestArgs::default().model(&model).input(&texts).build()?;
    let answer = openai.embeddings().create(request).await?;
    let found: Vec<_> = answer.data.into_iter().map(|item| item.embedding).collect();
    check("async-openai", &found, &wanted);
    println!("async-openai: {} texts", texts.len());

    let ollama = Ollama::try_new(url)?;
    let request = GenerateEmbeddingsRequest::new(format!("{model}:latest"), texts.clone().into());
    check("ollama-rs", &ollama.generate_embeddings(request).await?.embeddings, &wanted);
    let listed = ollama.list_local_models().await?;
    assert!(listed.iter().any(|listed| listed.name == format!("{model}:latest")), "{listed:?}");
    ollama.pull_model(model, false).await?;
    println!("ollama-rs: {} texts; pull of an installed model", texts.len());
    Ok(())
}
