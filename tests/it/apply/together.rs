//! Several at work on the same things: five `apply` at once, and one port that goes from one load
//! balancer to another.

use serde_json::json;

use super::{SHOP, apply, shop, write};
use crate::harness::{Outcome, Server};

/// Of five that make the same at once, one makes each object, and the others find it.
pub async fn five_at_once() -> Outcome {
    const FIVE: usize = 5;
    let server = Server::start().await?;
    for round in 0..3 {
        let text = shop(server.load_balancer_ports()).replace("shop", &format!("shop{round}"));
        let path = write(&server, &format!("{round}.yaml"), &text)?;
        let args = ["-f", path.to_str().unwrap_or_default()];
        let (a, b, c, d, e) = tokio::join!(
            apply(&server, &args),
            apply(&server, &args),
            apply(&server, &args),
            apply(&server, &args),
            apply(&server, &args)
        );
        let mut said = String::new();
        for done in [a, b, c, d, e] {
            said.push_str(&done?.with_status(0)?.out);
        }
        for object in ["application N", "security group N", "load balancer N", "pipeline N/deploy"] {
            let object = object.replace('N', &format!("shop{round}"));
            let count = |action: &str| said.lines().filter(|line| *line == format!("{action} {object}")).count();
            let counts = (count("created"), count("unchanged"));
            anyhow::ensure!(counts == (1, FIVE - 1), "{object}: {counts:?}\n{said}");
        }
    }
    // Nobody made anything twice.
    let data = server.client().query("{ pipelines { nodes { revision } } }", json!({})).await?;
    let revisions = data["pipelines"]["nodes"].as_array().cloned().unwrap_or_default();
    anyhow::ensure!(revisions.iter().all(|pipeline| pipeline["revision"] == 1) && revisions.len() == 3, "{data}");
    Ok(())
}

/// A key of its own for what is made does not keep it from being made again after it was deleted.
pub async fn made_again() -> Outcome {
    let server = Server::start().await?;
    let group = "---\nkind: SecurityGroup\nname: shop\ninbound: []\n";
    let whole = write(&server, "whole.yaml", &[SHOP, group].concat())?;
    let other = write(&server, "other.yaml", &group.replace("name: shop", "name: shop-other"))?;
    let (whole, other) = (whole.to_str().unwrap_or_default(), other.to_str().unwrap_or_default());
    for _ in 0..3 {
        let done = apply(&server, &["-f", whole]).await?.with_status(0)?;
        anyhow::ensure!(done.out.contains("created security group shop\n"), "{}", done.out);
        let done = apply(&server, &["-f", other, "--prune"]).await?.with_status(0)?;
        anyhow::ensure!(done.out.contains("deleted security group shop\n"), "{}", done.out);
    }
    Ok(())
}

pub async fn one_port_from_one_to_another() -> Outcome {
    let server = Server::start().await?;
    let (port, _) = server.load_balancer_ports();
    let balancer = |name: &str| format!("---\nkind: LoadBalancer\nname: {name}\nlisteners: [{{ port: {port} }}]\n");
    let names = async || {
        let data = server.client().query("{ loadBalancers { nodes { name problem } } }", json!({})).await?;
        anyhow::Ok(data["loadBalancers"]["nodes"].clone())
    };
    let path = write(&server, "shop.yaml", &[SHOP, &balancer("shop")].concat())?;
    let file = path.to_str().unwrap_or_default();
    apply(&server, &["-f", file]).await?.with_status(0)?;

    // Under another name: the old one goes first.
    write(&server, "shop.yaml", &[SHOP, &balancer("shop-web")].concat())?;
    let done = apply(&server, &["-f", file, "--prune"]).await?.with_status(0)?;
    let at = |text: &str| done.out.find(text);
    let (old, new) = (at("deleted load balancer shop\n"), at("created load balancer shop-web\n"));
    anyhow::ensure!(old.is_some() && old < new, "{}", done.out);
    let now = names().await?;
    anyhow::ensure!(now == json!([{ "name": "shop-web", "problem": null }]), "{now}");

    // What stays keeps its port, whoever has it.
    for (name, flags) in [("shop-third", &[][..]), ("other", &["--prune"])] {
        let application = format!("kind: Application\nname: {}\n", name.split('-').next().unwrap_or_default());
        let path = write(&server, "third.yaml", &[application.as_str(), &balancer(name)].concat())?;
        let file = path.to_str().unwrap_or_default();
        let done = apply(&server, &[&["-f", file], flags].concat()).await?.with_status(2)?;
        let wanted = format!(
            "load balancer {name}: load balancer shop-web listens at 127.0.0.1:{port}, and stays; give one of them \
             another port (at listeners.0.port)"
        );
        anyhow::ensure!(done.err.contains(&wanted), "{wanted}\n{}", done.err);
        anyhow::ensure!(names().await? == now);
    }
    Ok(())
}
