//! Profiles: laid out as documented, replaced whole whatever happens, and refused where they are not what they should be.

use std::io::ErrorKind;
use std::sync::Arc;

use longwave_storage::check::{CheckOptions, check_store};
use longwave_storage::fault::{FaultBackend, Injection, InjectionKind};
use longwave_storage::{
    Backend, Crash, Durability, Error, Identity, MemoryBackend, Profile, ProfileShape, profile_path,
    read_profile, remove_unfinished_profile, write_profile,
};

use crate::sample::{CONTEXT_ID, IDENTITY, PROFILE_SHAPE, build_store, profile};

fn path() -> String {
    profile_path(&IDENTITY)
}

#[test]
fn what_is_written_is_read_and_laid_out_as_documented() {
    let backend = MemoryBackend::new();
    assert_eq!(read_profile(&backend, &PROFILE_SHAPE).unwrap(), None);
    let profile = profile(7);
    write_profile(&backend, &profile, &CONTEXT_ID, Durability::None).unwrap();
    assert_eq!(read_profile(&backend, &PROFILE_SHAPE).unwrap(), Some(profile.clone()));
    let hex: String = IDENTITY.0.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(backend.files(), [format!("profiles/{hex}")]);

    let mut expected = IDENTITY.0.to_vec();
    // Layers, KV heads, dimension, layers that are known; the layer and its positions.
    expected.extend([2_u32, 3, 16, 1, 1, 7].iter().flat_map(|number| number.to_le_bytes()));
    expected.extend(profile.layers[0].moments.iter().flat_map(|x| x.to_le_bytes()));
    let bytes = backend.contents(&path()).unwrap();
    assert_eq!((&bytes[..8], &bytes[16..24]), (&b"LWPROFIL"[..], &(expected.len() as u64).to_le_bytes()[..]));
    assert_eq!(bytes[48..], expected);
}

#[test]
fn a_profile_of_another_model_or_shape_is_not_taken_for_this_ones() {
    let store = build_store();
    let other = Identity([9; 32]);
    store.replace(&profile_path(&other), &store.contents(&path()).unwrap()).unwrap();
    let foreign = read_profile(store.as_ref(), &ProfileShape { identity: other, ..PROFILE_SHAPE });
    assert!(matches!(foreign, Err(Error::Identity { .. })), "{foreign:?}");
    let backend: Arc<dyn Backend> = store.clone();
    let faults = check_store(&backend, &CheckOptions::default()).faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(faults[0].file, profile_path(&other));
    let larger = ProfileShape { kv_heads: 4, ..PROFILE_SHAPE };
    assert!(matches!(read_profile(store.as_ref(), &larger), Err(Error::Corrupt { offset: 80, .. })));
    // Of a model that has fewer layers, it is larger than any could be.
    let smaller = ProfileShape { layers: 0, ..PROFILE_SHAPE };
    assert!(matches!(read_profile(store.as_ref(), &smaller), Err(Error::Limit { .. })));
}

#[test]
fn a_profile_that_breaks_a_rule_is_not_written() {
    let store = build_store();
    let refused = |change: &dyn Fn(&mut Profile), why: &str| {
        let mut bad = profile(8);
        change(&mut bad);
        match write_profile(store.as_ref(), &bad, &CONTEXT_ID, Durability::Strict).unwrap_err() {
            Error::Input { what, .. } => assert!(what.contains(why), "{what}"),
            error => panic!("{error}"),
        }
        assert_eq!(read_profile(store.as_ref(), &PROFILE_SHAPE).unwrap(), Some(profile(7)));
    };
    refused(&|p| p.layers[0].layer = 2, "a layer from 0 to below 2, found 2");
    refused(&|p| p.layers.push(p.layers[0].clone()), "a layer from 2 to below 2, found 1");
    refused(&|p| p.layers[0].positions = 0, "1 position or more");
    refused(&|p| p.layers[0].moments[5] = f32::NAN, "a finite number");
    // The second diagonal element of the third head lies 16 behind the first.
    refused(&|p| p.layers[0].moments[2 * 136 + 16] = -1.0, "a mean of squares");
    refused(&|p| p.layers[0].moments.truncate(407), "1 of 2 layers");
    refused(&|p| p.shape.key_dim = 0, "the shape of a profile");
    refused(&|p| (p.shape.key_dim, p.shape.layers) = (1 << 16, 1 << 12), "the shape of a profile");
}

/// Wherever the writing stops and whatever the crash, one of the two profiles is there, whole.
#[test]
fn a_replaced_profile_is_the_old_one_or_the_new_one() {
    let base = build_store();
    let write = |backend: &dyn Backend| write_profile(backend, &profile(9), &CONTEXT_ID, Durability::Strict);
    let counter = FaultBackend::new(Arc::new(base.after(Crash::Kill)), None);
    write(&counter).unwrap();
    let full = InjectionKind::Fail { error: ErrorKind::StorageFull };
    let kinds = [full, InjectionKind::DoneButFails, InjectionKind::ShortWrite { written: 300 }];
    let (mut old, mut new) = (0, 0);
    for at in 0..=counter.operations() {
        for kind in kinds {
            let disk = base.after(Crash::Kill);
            let injection = Injection { at, kind, then_dead: true };
            let acknowledged = write(&FaultBackend::new(Arc::new(disk.clone()), Some(injection))).is_ok();
            let torn = (0..4).map(|seed| Crash::Torn { seed: seed + 5 * at });
            let crashes = [Crash::Kill, Crash::DropUnsynced, Crash::KeepNames, Crash::KeepContents];
            for crash in crashes.into_iter().chain(torn) {
                let label = format!("{kind:?} at {at}, {crash:?}");
                let survivor = disk.after(crash);
                let found =
                    read_profile(&survivor, &PROFILE_SHAPE).unwrap_or_else(|e| panic!("{label}: {e}"));
                assert!(found == Some(profile(7)) && !acknowledged || found == Some(profile(9)), "{label}");
                *(if found == Some(profile(7)) { &mut old } else { &mut new }) += 1;
                let shared: Arc<dyn Backend> = Arc::new(survivor.clone());
                assert_eq!(check_store(&shared, &CheckOptions::default()).faults, [], "{label}");
                remove_unfinished_profile(&survivor, &IDENTITY, &CONTEXT_ID).unwrap();
                assert_eq!(check_store(&shared, &CheckOptions::default()).notes, Vec::<String>::new());
            }
        }
    }
    assert!(old > 50 && new > 20, "{old} old, {new} new");
}
