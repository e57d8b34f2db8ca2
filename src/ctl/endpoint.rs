//! Finds the control socket of the running service that a command means.
//!
//! Owns: reading what the settings say about the socket, and the search in the usual folders. Refuses: to guess which
//! of two services is meant, and to trust a folder that another user can write to.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use super::conversation::{Failed, Reached, converse};
use crate::{
    log::terminal::plain,
    protocol::{self, ControlCommand, ControlResponse, Folder, Meant, Service},
    settings::{
        self, ControlSocket, Declared, Flags, ForeignSettings, Origin, Partial, Problem, Problems, StartFolder,
    },
    sys::host,
};

/// How a command reaches the service that it means: by the path of the control socket, by a search for the socket, or
/// not at all if `control.socket` is off.
#[derive(Debug)]
pub(crate) enum ControlEndpoint {
    Socket(PathBuf, Meant),
    Search(Search),
    Off,
}

/// The data to search for the service, and to identify it among the services that answer.
#[derive(Debug)]
pub(crate) struct Search {
    name: String,
    /// The path of the socket, if the settings name one. It is tried before the usual folders.
    socket: Option<PathBuf>,
    meant: Meant,
    /// The folder in which the command runs. If several services answer, the one that was started in this folder is
    /// meant.
    folder: PathBuf,
}

/// A service that has answered, and the path of its socket.
#[derive(Debug)]
struct FoundService {
    path: PathBuf,
    service: Service,
}

impl ControlEndpoint {
    /// Finds out how to reach the service that these flags, this environment and this folder mean. It reads the
    /// settings file even if the file has mistakes. Otherwise the command would not find the service, or would ask
    /// another service. `socket` is the value of `--socket`. If `socket` is given, any service that answers at this
    /// path is meant.
    ///
    /// # Errors
    /// The settings file cannot be read, so it is not known which service is meant. Or `socket` is a relative path, and
    /// the folder that it is resolved against is gone.
    pub(crate) fn find(
        socket: Option<&Path>,
        flags: &Flags,
        env: &BTreeMap<String, String>,
        start: &StartFolder,
        declared: &Declared,
        foreign: &ForeignSettings,
    ) -> Result<Self, Problems> {
        let socket = socket
            .map(|socket| start.join(socket))
            .transpose()
            .map_err(|message| Problems(vec![Problem::at(Origin::Flag("--socket"), "control.socket", message)]))?;
        let name_flag = flags.given.iter().rfind(|given| given.key == "process.name").map(|given| given.text.clone());
        let is_told = socket.is_some() || name_flag.is_some();
        let (partial, unreadable) = settings::resolve_partly(flags, env, start, declared, foreign);
        match unreadable {
            // Ignore the unreadable file: it was only found in the start folder, and the flags of the command name the
            // service without it.
            Some(Problems(why)) if is_told && why.iter().all(|problem| problem.place == Origin::Default) => {}
            Some(problems) => return Err(problems),
            None => {}
        }
        Ok(match socket {
            Some(socket) => Self::Socket(socket, Meant::default()),
            None => Self::of(partial, name_flag, start.path().to_owned()),
        })
    }

    fn of(partial: Partial, name_flag: Option<String>, folder: PathBuf) -> Self {
        let Partial { socket, name, file, file_is_named } = partial;
        let name = name_flag.clone().unwrap_or(name);
        // If the operator gave `--name`, ignore a settings file that was only found in the folder: it may belong to
        // another service.
        let file = file.filter(|_| file_is_named || name_flag.is_none());
        let file = file.map(|file| file.to_string_lossy().into_owned());
        let meant = Meant { file, name: name_flag };
        let search = |socket| Self::Search(Search { name, socket, meant: meant.clone(), folder });
        match (socket, meant.name.is_some()) {
            (ControlSocket::Auto | ControlSocket::Off, true) | (ControlSocket::Auto, false) => search(None),
            (ControlSocket::Path(socket), true) => search(Some(socket)),
            (ControlSocket::Path(socket), false) => Self::Socket(socket, meant),
            (ControlSocket::Off, false) => Self::Off,
        }
    }

    /// Connects to the service that is meant. `patience` is the time that each master has to say to which service it
    /// belongs.
    pub(super) fn connect(&self, patience: Duration) -> Result<Reached, Failed> {
        match self {
            Self::Off => Err(Failed::off()),
            Self::Search(search) => search.connect(patience),
            Self::Socket(path, meant) => Reached::at(path, meant, patience),
        }
    }
}

impl Search {
    fn connect(&self, patience: Duration) -> Result<Reached, Failed> {
        let (uid, _) = host::effective_ids();
        let folders = protocol::client_folders(&self.name, uid, |name| std::env::var_os(name));
        let mut sockets: Vec<_> = self.socket.clone().into_iter().collect();
        sockets.extend(folders.iter().flat_map(|folder| sockets_in(folder, &self.name, uid)));
        let mut others = Vec::new();
        let mut found = self.meant_among(&sockets, patience, &mut others)?;
        // Look in other folders only if the service that is meant has no socket in the usual folders. Otherwise the
        // command could reach a service that another user has started to imitate it.
        if found.is_none() {
            found = self.meant_among(&sockets_elsewhere(&self.name, uid), patience, &mut others)?;
        }
        match found {
            Some(path) => Reached::at(&path, &self.meant, patience),
            None => Err(Failed::Refused(self.none(&others, &folders))),
        }
    }

    /// Asks the service at each of these sockets. Returns the socket of the service that is meant, if this service
    /// answers. If other services answer, adds them to `others`.
    fn meant_among(
        &self,
        sockets: &[PathBuf],
        patience: Duration,
        others: &mut Vec<FoundService>,
    ) -> Result<Option<PathBuf>, Failed> {
        let mut found = Vec::new();
        let mut silent = Vec::new();
        for path in sockets {
            let Ok(reached) = Reached::at(path, &self.meant, patience) else { continue };
            match converse(&reached, ControlCommand::Status, Some(patience), &mut |_| {}) {
                Ok(ControlResponse { ok, service: Some(service), .. }) => {
                    let list = if ok { &mut found } else { &mut *others };
                    // Two paths may lead to the same socket, so count each pid once.
                    if !list.iter().any(|known| known.service.pid == service.pid) {
                        list.push(FoundService { path: path.clone(), service });
                    }
                }
                Ok(ControlResponse { service: None, .. }) | Err(_) => silent.push(path.clone()),
            }
        }
        if found.len() > 1 && found.iter().filter(|found| self.is_here(&found.service)).count() == 1 {
            found.retain(|found| self.is_here(&found.service));
        }
        match (found.as_slice(), silent.as_slice()) {
            // There is only one socket, and its master does not answer. Return this socket, so that the command reports
            // what is wrong with the master.
            ([], [path]) if others.is_empty() => Ok(Some(path.clone())),
            ([], _) => Ok(None),
            ([found], _) => Ok(Some(found.path.clone())),
            (several, _) => Err(Failed::Ambiguous(format!(
                "{} services named {} run; name one by --socket, or run the command in its folder:{}",
                several.len(),
                self.name,
                listed(several)
            ))),
        }
    }

    fn is_here(&self, service: &Service) -> bool {
        let led = |folder: &Path| fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        led(Path::new(&service.folder)) == led(&self.folder)
    }

    fn none(&self, others: &[FoundService], folders: &[Folder]) -> String {
        let Self { name, meant, .. } = self;
        let tried = folders.iter().map(|folder| match folder {
            Folder::Given(path) | Folder::Private(path) => path.display().to_string(),
        });
        let tried = tried.collect::<Vec<_>>().join(", ");
        let wanted = match &meant.file {
            Some(file) => format!("no running service named {name} uses {file}"),
            None => format!("no running service named {name} answers"),
        };
        match others {
            [] => format!("{wanted}; looked for {name}.sock in {tried}"),
            others => format!("{wanted}; nothing was done. Others of that name run:{}", listed(others)),
        }
    }
}

fn listed(found: &[FoundService]) -> String {
    let line =
        |found: &FoundService| format!("\n  --socket {}  {}", found.path.display(), plain(&found.service.to_string()));
    found.iter().map(line).collect()
}

/// Returns the sockets in `folder` that belong to services with this name. Returns no sockets if the folder must be
/// private, but another user can read or write it.
fn sockets_in(folder: &Folder, name: &str, uid: u32) -> Vec<PathBuf> {
    let folder = match folder {
        Folder::Private(path) if !crate::sys::file::is_private_folder(path, uid).unwrap_or(false) => return Vec::new(),
        Folder::Private(path) | Folder::Given(path) => path,
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of_name =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(|file| protocol::is_socket_of(name, file)));
    let mut sockets: Vec<_> = of_name.map(|entry| entry.path()).collect();
    sockets.sort();
    sockets
}

/// Returns sockets outside the usual folders: those of systemd units whose `RuntimeDirectory=` does not have the name
/// of the service. For root it also returns the sockets of all users, because root may ask every service. It leaves out
/// a socket if another user than the owner of its folder made the socket or can write to the folder.
fn sockets_elsewhere(name: &str, uid: u32) -> Vec<PathBuf> {
    let mut folders: Vec<_> = entries("/run").collect();
    if uid == 0 {
        let users: Vec<_> = entries("/run/user").collect();
        folders.extend(users.iter().map(|folder| folder.join(name)));
        folders.extend(users);
        folders.extend(entries("/tmp").filter(|path| path.to_string_lossy().starts_with("/tmp/oxicorn-")));
    }
    let mut sockets = Vec::new();
    for folder in folders {
        let Ok(found) = fs::symlink_metadata(&folder) else { continue };
        if (uid == 0 || found.uid() == uid) && is_owners_alone(&folder, &found) {
            let of_owner = |path: &PathBuf| is_socket_of_user(path, found.uid());
            sockets.extend(sockets_in(&Folder::Given(folder), name, uid).into_iter().filter(of_owner));
        }
    }
    sockets
}

/// Returns true if only the owner of `folder` can write to it, and if its name is the one that this owner's services
/// use. The name must be checked because in `/tmp` any user can make a folder, even one named with the uid of another
/// user.
fn is_owners_alone(folder: &Path, found: &fs::Metadata) -> bool {
    let owner = found.uid();
    let (named, others) = match () {
        () if folder.starts_with("/tmp") => (folder == Path::new(&format!("/tmp/oxicorn-{owner}")), 0o077),
        () if folder.starts_with("/run/user") => (folder.starts_with(format!("/run/user/{owner}")), 0o022),
        () => (true, 0o022),
    };
    found.is_dir() && named && found.mode() & others == 0
}

fn entries(folder: &str) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn is_socket_of_user(path: &Path, uid: u32) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket() && found.uid() == uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Given;

    fn find(
        socket: Option<&str>,
        flags: &Flags,
        env: &BTreeMap<String, String>,
        folder: &Path,
    ) -> Result<ControlEndpoint, Problems> {
        let (start, declared, foreign) = (StartFolder::at(folder), Declared::default(), ForeignSettings::new());
        ControlEndpoint::find(socket.map(Path::new), flags, env, &start, &declared, &foreign)
    }

    /// A command must ask the service of its settings file and no other, wherever in the file a mistake is.
    #[test]
    fn a_file_with_mistakes_still_names_its_control_socket() {
        const SOCKET: &str = "[control]\nsocket = \"c.sock\"\n";
        let dir = tempfile::tempdir().unwrap();
        let file = fs::canonicalize(dir.path()).unwrap().join("supervisor.toml").to_string_lossy().into_owned();
        let found = |text: &str, flags: &Flags, env: &[(&str, &str)]| {
            fs::write(dir.path().join("supervisor.toml"), text).unwrap();
            let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            find(None, flags, &env, dir.path()).unwrap()
        };
        for text in [
            SOCKET.to_owned(),
            format!("{SOCKET}[workers]\ncount = = 4\n"),
            format!("[workers]\ncount = \"\n{SOCKET}"),
            format!("[workers]\ncount = 4\ncount = 4\n{SOCKET}"),
            format!("[workers\ncount = 4\n{SOCKET}"),
            format!("workers\n{SOCKET}"),
            format!("= 1\n]]\n{{\n\"\n{SOCKET}"),
            format!("{SOCKET}[[[\nx = \"\"\"\n"),
            format!("{SOCKET}[control]\nsocket = \"d.sock\"\n"),
            "[control]\nsocket = \"c.sock\nname\n".to_owned(),
        ] {
            let ControlEndpoint::Socket(socket, meant) = found(&text, &Flags::default(), &[]) else { panic!("{text}") };
            assert_eq!(socket, dir.path().join("c.sock"), "{text}");
            assert_eq!(meant.file, Some(file.clone()));
        }
        let broken = "[process]\nname = \"a\"\n[control]\nsocket = 4\n[[";
        let flag = Given { key: "process.name", flag: "--name", text: "c".to_owned() };
        let named = Flags { given: vec![flag], ..Flags::default() };
        let env = [("OXICORN_PROCESS__NAME", "b"), ("OXICORN_CONTROL__SOCKET", "/run/x.sock")];
        let ControlEndpoint::Search(search) = found(broken, &Flags::default(), &[]) else {
            panic!("the socket is auto")
        };
        assert_eq!((search.name.as_str(), search.socket), ("a", None));
        let ControlEndpoint::Socket(socket, _) = found(broken, &Flags::default(), &env) else {
            panic!("a socket is given")
        };
        assert_eq!(socket, Path::new("/run/x.sock"));
        let ControlEndpoint::Search(search) = found(broken, &named, &env) else { panic!("a name is given") };
        assert_eq!((search.name.as_str(), search.socket), ("c", Some("/run/x.sock".into())));
        let env_file = dir.path().join("a.env");
        fs::write(&env_file, "OXICORN_CONTROL__SOCKET=/run/y.sock\n").unwrap();
        let text = "[process]\nenv_file = \"a.env\"\n[server]\nbind = [[";
        let ControlEndpoint::Socket(socket, _) = found(text, &Flags::default(), &[]) else { panic!("{text}") };
        assert_eq!(socket, Path::new("/run/y.sock"));
    }

    #[test]
    fn a_command_that_names_its_service_ignores_the_settings_file_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        // Make a folder with the name of the settings file. The program finds it, but cannot read it as a file.
        fs::create_dir(dir.path().join("supervisor.toml")).unwrap();
        let find = |flags: &Flags, socket: Option<&str>| find(socket, flags, &BTreeMap::new(), dir.path());
        let named = Given { key: "process.name", flag: "--name", text: "c".to_owned() };
        let (plain, named) = (Flags::default(), Flags { given: vec![named], ..Flags::default() });
        assert!(find(&plain, None).is_err());
        let Ok(ControlEndpoint::Search(search)) = find(&named, None) else { panic!("a name is given") };
        assert_eq!(search.name, "c");
        let Ok(ControlEndpoint::Socket(_, meant)) = find(&plain, Some("/x")) else { panic!("a socket is given") };
        assert_eq!(meant.file, None);
        let config = Flags { config: Some("supervisor.toml".into()), ..named };
        assert!(find(&config, Some("/x")).is_err(), "a file that is named has to be read");
    }
}
