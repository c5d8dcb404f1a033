//! Images: from a recipe to a root file system in the store.
//!
//! ```text
//!  recipe -> mmdebstrap (root, or a user namespace) -> tar -> entries -> ext4
//!
//!  <state>/images/<content id>/
//!      rootfs.ext4      the content id is the beginning of its SHA-256
//!      manifest.json
//! ```
//!
//! The same recipe and the same package lists give the same bytes: every time in the
//! image is at most the date of the lists, and what differs from build to build (host
//! names, keys, logs) is taken away.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::apt::Apt;
use super::catalog::{ImageEntry, catalog};
use super::ext4::{self, Purpose, Shape};
use super::job::{Job, at};
use super::lock::{self, Pull};
use super::manifest::{Depth, Manifest};
use super::recipe::{self, Builder, Recipe};
use super::store::{self, Aside};
use super::tarball::Tarball;
use super::{program, subids};
use crate::fail_point;
use crate::failure::Failure;
use crate::host::layout::Layout;
use crate::model::ids::{ContentId, ImageName};
use crate::model::image::Image;

/// The file of an image that a VM boots from.
const ROOTFS: &str = "rootfs.ext4";
/// Where a user's builds happen: a folder that other users may enter, as the ids of a
/// user namespace are others.
const SHARED_TEMPORARY: &str = "/var/tmp";

/// Makes an image of a catalogue entry from today's packages, or joins a pull of it that
/// is under way.
///
/// # Errors
/// The name is unknown, the archive or a tool is missing, the disk is full; cancelled.
/// Nothing is left of a failed pull.
pub fn pull_image(job: &Job, name: &ImageName) -> Result<Image, Failure> {
    let catalog = catalog();
    let entry = catalog.image(name)?;
    let what = format!("build image {name}");
    let parent = job.layout.images();
    let mut pull = Pull::begin(job, &parent, name.as_str())?;
    if let Some(content) = pull.shared()
        && verify_image(job, &content, Depth::Quick).is_ok()
    {
        return load(job, name, &content);
    }
    pull.start()?;
    let (recipe, text) = recipe::recipe(&entry.recipe)?;
    let builder = builder(&what)?;
    store::require_space(&parent, recipe.room_mib << 20, &what)?;
    let aside = Aside::make(&parent)?;
    let inputs = inputs(job, &recipe, text, &aside)?;
    let tar = bootstrap(job, entry, &recipe, builder, &inputs, &aside)?;
    let content = make(job, entry, &recipe, &inputs, &tar, aside)?;
    pull.done(&content)?;
    load(job, name, &content)
}

/// Whether an image's file is as it was made.
///
/// # Errors
/// Something is missing or damaged; cancelled.
pub fn verify_image(job: &Job, content: &ContentId, depth: Depth) -> Result<(), Failure> {
    let folder = job.layout.images().join(content.as_str());
    Manifest::read(&folder, content).and_then(|manifest| manifest.verify(job, &folder, depth))
}

/// An image that is in the store.
///
/// # Errors
/// It is not there, or its manifest is damaged.
pub fn load(job: &Job, name: &ImageName, content: &ContentId) -> Result<Image, Failure> {
    let folder = job.layout.images().join(content.as_str());
    let manifest = Manifest::read(&folder, content)?;
    Ok(Image {
        name: name.clone(),
        content: content.clone(),
        size: manifest.size_of(ROOTFS),
        allocated: manifest.allocated(&folder),
        source: manifest.source.clone(),
        created_at: manifest.created_at,
    })
}

/// Removes what builders that are dead have left in the store.
///
/// # Errors
/// A leftover cannot be removed; the others are.
pub fn sweep(layout: &Layout) -> Result<(), Failure> {
    let images = store::sweep(&layout.images(), store::ASIDE);
    images.and(store::sweep(&layout.kernels(), store::ASIDE))
}

/// Removes what builders that are dead have left where other users may write too; called
/// when the daemon starts.
///
/// # Errors
/// A leftover cannot be removed; the others are.
pub fn sweep_shared() -> Result<(), Failure> {
    store::sweep(Path::new(SHARED_TEMPORARY), &shared_prefix())
}

fn shared_prefix() -> String {
    format!("banger-build-{}-", rustix::process::getuid().as_raw())
}

fn builder(what: &str) -> Result<Builder, Failure> {
    program::find("mmdebstrap", "mmdebstrap")?;
    match rustix::process::geteuid().is_root() {
        true => Ok(Builder::Root),
        false => subids::require(what).map(|()| Builder::User),
    }
}

/// What decides an image's content besides the packages themselves.
struct Inputs {
    /// A deb822 file.
    sources: PathBuf,
    /// Date of the package lists, seconds since the epoch.
    epoch: u64,
    /// The recipe's digest.
    recipe: String,
}

fn inputs(job: &Job, recipe: &Recipe, text: &str, aside: &Aside) -> Result<Inputs, Failure> {
    let apt = Apt::open(job, &recipe.suite)?;
    // A copy, because apt's lock ends here.
    let sources = aside.path().join(".sources").join("debian.sources");
    let folder = aside.path().join(".sources");
    fs::create_dir(&folder).map_err(at("create", &folder))?;
    fs::copy(&apt.sources, &sources).map_err(at("copy", &apt.sources))?;
    Ok(Inputs {
        sources,
        epoch: apt.snapshot_time()?,
        recipe: format!("{:x}", Sha256::digest(text)),
    })
}

/// Runs mmdebstrap; returns the archive that it wrote.
fn bootstrap(
    job: &Job,
    entry: &ImageEntry,
    recipe: &Recipe,
    builder: Builder,
    inputs: &Inputs,
    aside: &Aside,
) -> Result<PathBuf, Failure> {
    let what = format!("build image {}", entry.name);
    let packages = job.layout.apt().join("packages").join(&entry.recipe);
    fs::create_dir_all(&packages).map_err(at("create", &packages))?;
    let packages_path = packages
        .to_str()
        .filter(|path| !path.contains(char::is_whitespace));
    if packages_path.is_none() {
        // mmdebstrap splits the line of its sync-in and sync-out hooks at spaces.
        return Err(Failure::usage(&what)
            .because(format!("the path {} has a space in it", packages.display()))
            .hint("Point BANGER_CACHE_DIR to a path without spaces."));
    }
    let _using = lock::lock(job, &packages.with_extension("lock"), "another build")?;
    let temporary = match builder {
        Builder::Root => None,
        Builder::User => Some(Aside::shared(
            Path::new(SHARED_TEMPORARY),
            &shared_prefix(),
        )?),
    };
    let mut command = mmdebstrap(builder)?;
    command.args(recipe.arguments(builder, &inputs.sources, &packages));
    command.env("SOURCE_DATE_EPOCH", inputs.epoch.to_string());
    command.env("TMPDIR", temporary.as_ref().unwrap_or(aside).path());
    let tar = aside.path().join(".rootfs.tar");
    let output = File::create(&tar).map_err(at("create", &tar))?;
    job.stage("install packages", "");
    program::run(
        job,
        &what,
        command,
        Some(Stdio::from(output)),
        &mut |line| {
            log::debug!("mmdebstrap: {line}");
            if let Some(phase) = phase(line) {
                job.stage("install packages", phase);
            }
        },
    )?;
    fail_point::hit("pull.downloaded").map_err(at("write", &tar))?;
    Ok(tar)
}

/// As root it gets its mounts and processes in namespaces of its own, so that nothing of
/// it can outlive it; as a user it does that itself.
fn mmdebstrap(builder: Builder) -> Result<Command, Failure> {
    match builder {
        Builder::User => program::command("mmdebstrap", "mmdebstrap"),
        Builder::Root => {
            let mut command = program::command("unshare", "util-linux")?;
            command.args(["--mount", "--propagation", "private", "--mount-proc"]);
            command.args(["--pid", "--fork", "--kill-child", "--"]);
            command.arg(program::find("mmdebstrap", "mmdebstrap")?);
            Ok(command)
        }
    }
}

/// What a line of mmdebstrap says about its progress, for people.
fn phase(line: &str) -> Option<&str> {
    let line = line.strip_prefix("I: ")?;
    let known = [
        "running apt-get update",
        "downloading packages",
        "extracting archives",
        "installing essential packages",
        "installing remaining packages",
        "cleaning package lists",
        "creating tarball",
    ];
    known
        .into_iter()
        .find(|phase| line.starts_with(phase))
        .map(|phase| phase.trim_end_matches("..."))
}

fn make(
    job: &Job,
    entry: &ImageEntry,
    recipe: &Recipe,
    inputs: &Inputs,
    tar: &Path,
    aside: Aside,
) -> Result<ContentId, Failure> {
    let folder = aside.path();
    job.stage("write the file system", "");
    let mut tarball = Tarball::open(job, tar)?;
    let [given, usual] = recipe::SOURCES;
    tarball.rename(given, usual);
    let epoch = i64::try_from(inputs.epoch).unwrap_or(0);
    for (path, text) in recipe.finish(&mut tarball.entries, epoch) {
        tarball.override_text(path, text);
    }
    let shape = Shape {
        purpose: Purpose::Root,
        label: "rootfs",
        identity: format!("{} {} {}", entry.name, inputs.recipe, inputs.epoch),
        epoch: inputs.epoch,
    };
    let entries = std::mem::take(&mut tarball.entries);
    let target = folder.join(ROOTFS);
    ext4::write(
        job,
        &entries,
        &mut tarball.contents(&entries),
        &shape,
        &target,
    )?;
    fs::remove_file(tar).map_err(at("remove", tar))?;
    let sources = folder.join(".sources");
    fs::remove_dir_all(&sources).map_err(at("remove", &sources))?;
    let source = format!("recipe {}, Debian {}", entry.recipe, recipe.suite);
    let manifest = Manifest::of(job, folder, entry.name.as_str(), source)?;
    manifest.write(folder)?;
    fail_point::hit("pull.built").map_err(at("build", folder))?;
    job.check("keep the image")?;
    let content = manifest.content();
    aside.keep(&content, |old| {
        manifest.verify(job, old, Depth::Full).is_ok() && Manifest::read(old, &content).is_ok()
    })?;
    Ok(content)
}
