//! Fills a new directory, copied from another or unpacked from a tarball, so that nothing climbs out of it.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use flate2::read::GzDecoder;
use tar::EntryType;

use super::super::files;
use super::{Bounds, too_large};

pub(super) fn open_to_all(directory: &Path) -> io::Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
}

/// Readable by all (instances may run as another user), executable where it was.
fn open_mode(mode: u32) -> fs::Permissions {
    fs::Permissions::from_mode(if mode & 0o111 == 0 { 0o644 } else { 0o755 })
}

pub(super) fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    fs::set_permissions(to, open_mode(fs::metadata(from)?.mode()))
}

pub(super) fn copy_tree(from: &Path, to: &Path, root: &Path) -> io::Result<()> {
    for (name, source) in files::names(from)? {
        let target = to.join(&name);
        let meta = fs::symlink_metadata(&source)?;
        if meta.is_dir() {
            fs::create_dir(&target)?;
            open_to_all(&target)?;
            copy_tree(&source, &target, root)?;
        } else if meta.is_file() {
            copy_file(&source, &target)?;
        } else if meta.is_symlink() {
            let link = fs::read_link(&source)?;
            let inside = source.strip_prefix(root).map_err(io::Error::other)?;
            if !link_stays(inside, &link) {
                return Err(io::Error::other(format!("link {} leaves the directory", source.display())));
            }
            std::os::unix::fs::symlink(link, target)?;
        } else {
            return Err(io::Error::other(format!("{} is neither a file, a directory nor a link", source.display())));
        }
    }
    Ok(())
}

/// Unpacks a `.tar.gz` into a new directory.
pub(super) fn unpack(packed: impl Read, into: &Path, bounds: Bounds) -> io::Result<()> {
    fs::create_dir(into)?;
    open_to_all(into)?;
    // Names and padding count too, so that a bomb of headers ends as well.
    let plain = GzDecoder::new(packed).take(bounds.unpacked + bounds.entries as u64 * 1024 + 1024 * 1024);
    let mut archive = tar::Archive::new(plain);
    let (mut bytes, mut entries) = (0_u64, 0_usize);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            continue;
        }
        let path = inside(&entry.path()?)?;
        entries += 1;
        bytes = bytes.saturating_add(entry.size());
        if entries > bounds.entries || bytes > bounds.unpacked {
            return Err(io::Error::other(too_large(bounds)));
        }
        if path.as_os_str().is_empty() {
            continue;
        }
        let target = into.join(&path);
        match kind {
            EntryType::Directory => make_real_directories(into, &path)?,
            EntryType::Regular | EntryType::Continuous => {
                clear(into, &path)?;
                let mode = entry.header().mode().unwrap_or(0o644);
                let mut file = OpenOptions::new().write(true).create_new(true).open(&target)?;
                io::copy(&mut entry, &mut file)?;
                file.set_permissions(open_mode(mode))?;
            }
            EntryType::Symlink => {
                let link = entry.link_name()?.ok_or_else(|| io::Error::other("a link without a target"))?.into_owned();
                if !link_stays(&path, &link) {
                    return Err(io::Error::other(format!("link {} leaves the archive", path.display())));
                }
                clear(into, &path)?;
                std::os::unix::fs::symlink(link, &target)?;
            }
            EntryType::Link => {
                let link = entry.link_name()?.ok_or_else(|| io::Error::other("a link without a target"))?;
                let source = into.join(inside(&link)?);
                real_parents(into, &inside(&link)?)?;
                if !fs::symlink_metadata(&source)?.is_file() {
                    return Err(io::Error::other(format!("link {} does not point to a file", path.display())));
                }
                clear(into, &path)?;
                fs::hard_link(source, &target)?;
            }
            _ => {
                return Err(io::Error::other(format!("{} is neither a file, a directory nor a link", path.display())));
            }
        }
    }
    Ok(())
}

/// The path without `.`; refused when it is absolute or climbs.
fn inside(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(io::Error::other(format!("path {} leaves the archive", path.display())));
            }
        }
    }
    Ok(clean)
}

/// Whether a symbolic link at a path stays inside. It may climb only at its beginning, where its
/// parents are known to be real directories, and no higher than the top; each link that it passes
/// later was held to the same.
fn link_stays(at: &Path, target: &Path) -> bool {
    let depth = at.components().count().saturating_sub(1);
    let mut climbed = 0;
    let mut descending = false;
    for part in target.components() {
        match part {
            Component::Normal(_) => descending = true,
            Component::CurDir => {}
            Component::ParentDir if descending => return false,
            Component::ParentDir => climbed += 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    climbed <= depth
}

/// Makes room for an entry: real directories above it, and nothing in its place.
fn clear(root: &Path, path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        make_real_directories(root, parent)?;
    }
    let target = root.join(path);
    match fs::symlink_metadata(&target) {
        Ok(meta) if meta.is_dir() => {
            Err(io::Error::other(format!("{} is a directory and something else", path.display())))
        }
        Ok(_) => fs::remove_file(target),
        Err(_) => Ok(()),
    }
}

fn make_real_directories(root: &Path, path: &Path) -> io::Result<()> {
    let mut here = root.to_path_buf();
    for part in path.components() {
        here.push(part);
        match fs::symlink_metadata(&here) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                return Err(io::Error::other(format!(
                    "{} goes through something that is no directory",
                    path.display()
                )));
            }
            Err(_) => {
                fs::create_dir(&here)?;
                open_to_all(&here)?;
            }
        }
    }
    Ok(())
}

/// Everything above a path is a real directory.
fn real_parents(root: &Path, path: &Path) -> io::Result<()> {
    let mut here = root.to_path_buf();
    for part in path.parent().into_iter().flat_map(Path::components) {
        here.push(part);
        if !fs::symlink_metadata(&here)?.is_dir() {
            return Err(io::Error::other(format!("{} goes through a link", path.display())));
        }
    }
    Ok(())
}
