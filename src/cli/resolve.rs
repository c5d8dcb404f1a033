//! Which VMs a list of references means: names, ids, beginnings of ids. Pure; one
//! snapshot of all VMs decides for the whole list.

use crate::failure::Failure;
use crate::model::nearest::known_vms;
use crate::proto::reply::VmView;

/// The VM that one reference means.
///
/// # Errors
/// None, with the nearest name; or several, with their names.
pub fn resolve<'a>(reference: &str, vms: &'a [VmView]) -> Result<&'a VmView, Failure> {
    let exact = |vm: &&VmView| vm.name == reference || vm.id == reference;
    if let Some(vm) = vms.iter().find(exact) {
        return Ok(vm);
    }
    let begins = |vm: &&VmView| !reference.is_empty() && vm.id.starts_with(reference);
    let found: Vec<&VmView> = vms.iter().filter(begins).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(unknown(reference, vms)),
        several => {
            let names: Vec<&str> = several.iter().map(|vm| vm.name.as_str()).collect();
            let what = format!("{reference:?} begins the ids of {}", names.join(" and "));
            Err(Failure::usage(what).hint("Use a name, or more of the id."))
        }
    }
}

fn unknown(reference: &str, vms: &[VmView]) -> Failure {
    let names = vms.iter().map(|vm| vm.name.as_str());
    let what = format!("find vm {reference}: there is none");
    Failure::not_found(what).hint(known_vms(reference, names))
}

/// What each reference means, in the order given; a VM meant twice appears once.
pub fn resolve_all<'a>(
    references: &[String],
    vms: &'a [VmView],
) -> Vec<Result<&'a VmView, Failure>> {
    let mut seen = Vec::new();
    let mut targets = Vec::new();
    for reference in references {
        let target = resolve(reference, vms);
        if let Ok(vm) = &target {
            if seen.contains(&&vm.id) {
                continue;
            }
            seen.push(&vm.id);
        }
        targets.push(target);
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::samples::vm;

    fn ids(references: &[&str]) -> Vec<Result<String, u8>> {
        let vms = [
            vm("0a000001", "dev"),
            vm("0a000002", "other"),
            vm("0b000003", "0a"),
        ];
        let references: Vec<String> = references.iter().map(|r| (*r).to_owned()).collect();
        let target = |target: Result<&VmView, Failure>| {
            target
                .map(|vm| vm.id.clone())
                .map_err(|f| f.kind.exit_status())
        };
        resolve_all(&references, &vms)
            .into_iter()
            .map(target)
            .collect()
    }

    #[test]
    fn names_ids_and_beginnings_are_found_and_counted_once() {
        assert_eq!(
            ids(&["dev", "0a000001", "0b", "nobody", "dev"]),
            [Ok("0a000001".into()), Ok("0b000003".into()), Err(4)]
        );
    }

    #[test]
    fn a_name_wins_over_the_beginning_of_an_id() {
        assert_eq!(ids(&["0a"]), [Ok("0b000003".into())]);
    }

    #[test]
    fn an_unknown_name_is_refused_as_the_daemon_does_it() {
        let failure = resolve("dve", &[vm("0a000001", "dev")]).unwrap_err();
        assert_eq!(failure.what, "find vm dve: there is none");
        let hint = "Did you mean dev? `banger vm list` shows all.";
        assert_eq!(failure.hint.as_deref(), Some(hint));
    }

    #[test]
    fn an_ambiguous_beginning_is_refused() {
        assert_eq!(ids(&["0a0"]), [Err(2)]);
    }
}
