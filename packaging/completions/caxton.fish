# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_caxton_global_optspecs
    string join \n socket= config= h/help V/version
end

function __fish_caxton_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_caxton_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_caxton_using_subcommand
    set -l cmd (__fish_caxton_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c caxton -n "__fish_caxton_needs_command" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_needs_command" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_needs_command" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_needs_command" -s V -l version -d 'Print version'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "embed" -d 'Print the vectors of texts, one line each; without TEXT, of the lines of standard input'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "model" -d 'Install, verify, list and pack models'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "memory" -d 'Show and change what is in memory'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "status" -d 'Show what the daemon is doing'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "events" -d 'Show what happens to models, memory, packages and the configuration'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "top" -d 'Watch models, memory, queue, throughput and events; load, unload and pin models by key'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "bench" -d 'Measure how fast a model is on this machine, without a daemon'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "check" -d 'Show every problem of a configuration with its file, line and column, without starting anything'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "cat-config" -d 'Print every value that the files give, and where it was written'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "doctor" -d 'Find out what is wrong on this machine, and how to mend it'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "demo" -d 'Start a daemon in a temporary place, embed a dozen sentences through its socket, clean up'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c caxton -n "__fish_caxton_using_subcommand embed" -l model -d 'The model or alias [default: the daemon\'s default model]' -r
complete -c caxton -n "__fish_caxton_using_subcommand embed" -l prompt -d 'The model\'s prompt to put before each text, such as "query"' -r
complete -c caxton -n "__fish_caxton_using_subcommand embed" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand embed" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand embed" -l json -d 'Print the daemon\'s whole answer in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand embed" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -f -a "pack" -d 'Make a package from a sentence-transformers directory'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -f -a "install" -d 'Install a package, or a directory that is packed first; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -f -a "verify" -d 'Check a package file, or every file of an installed model, against its digests'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -f -a "list" -d 'List installed models'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -f -a "show" -d 'Show everything about an installed model'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -f -a "stats" -d 'Show how much each model is used and how fast it is'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -f -a "rollback" -d 'Let an id mean an earlier version, until one above all others is installed; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -f -a "remove" -d 'Remove an installed model; its file leaves the drop directory, too; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -f -a "export" -d 'Write an installed model as a package; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -f -a "known" -d 'List the models whose names, prompts and licences are built in'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback remove export known help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l source -d 'The sentence-transformers directory' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l model-id -d 'The name to ask for the model [default: the directory\'s name]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l original -d 'The known model that this is, if the id does not say so: gives licence, languages and prompts' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l model-version -d 'The version of the package [default: 1]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l precision -d 'How to store the weights [default: as they are]' -r -f -a "f32\t''
f16\t''
int8\t''"
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l license -d 'SPDX expression of the model\'s licence [default: that of the known model]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l revision -d 'The revision of the directory where it comes from' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l output -d 'The package to write; it appears when it is complete' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l source -d 'A sentence-transformers directory to pack and install in one step' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l model-id -d 'The name to ask for the model [default: the directory\'s name]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l original -d 'The known model that this is, if the id does not say so: gives licence, languages and prompts' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l model-version -d 'The version of the package [default: 1]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l precision -d 'How to store the weights [default: as they are]' -r -f -a "f32\t''
f16\t''
int8\t''"
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l license -d 'SPDX expression of the model\'s licence [default: that of the known model]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l revision -d 'The revision of the directory where it comes from' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l replace -d 'Let the id have another embedding space; vectors made before and after must not be compared'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l allow-downgrade -d 'Install a signed package although a higher version of it was installed; the id still means the highest'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l validate-checksums -d 'Hash every installed file once more afterwards; digests are always checked during the installation'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from verify" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from verify" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from verify" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from list" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from list" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from list" -l json -d 'Print JSON, for programs'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from show" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from show" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from show" -l json -d 'Print JSON, for programs'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from stats" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from stats" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from stats" -l json -d 'Print the daemon\'s answer in JSON, which has more'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from stats" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from rollback" -l to -d 'The version, or the beginning of the revision, that it is to mean [default: the one before]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from rollback" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from rollback" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from rollback" -l clear -d 'Let it mean its highest version again'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from rollback" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from remove" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from remove" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from export" -l output -d 'The package to write, which appears when it is complete; `-` is standard output' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from export" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from export" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from export" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "pack" -d 'Make a package from a sentence-transformers directory'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "install" -d 'Install a package, or a directory that is packed first; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "verify" -d 'Check a package file, or every file of an installed model, against its digests'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "list" -d 'List installed models'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show everything about an installed model'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "stats" -d 'Show how much each model is used and how fast it is'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "rollback" -d 'Let an id mean an earlier version, until one above all others is installed; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Remove an installed model; its file leaves the drop directory, too; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "export" -d 'Write an installed model as a package; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "known" -d 'List the models whose names, prompts and licences are built in'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -f -a "status" -d 'Show how short memory is, what models take, and what was done last'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -f -a "flush" -d 'Let all models leave memory that are not pinned, and wait until they have; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -f -a "load" -d 'Load a model, or change whether it stays; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -f -a "unload" -d 'Let a model leave memory, and wait until it has; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -f -a "limit" -d 'Limit the daemon\'s memory until its next start; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from status" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from status" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from status" -l json -d 'Print the daemon\'s answer in JSON, which has more'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from status" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from flush" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from flush" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from flush" -l json -d 'Print the daemon\'s answer in JSON, which has more'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from flush" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from load" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from load" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from load" -l pin -d 'Keep it in memory whatever happens, until the daemon\'s next start'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from load" -l unpin -d 'No longer keep it in memory whatever happens'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from load" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from unload" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from unload" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from unload" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from limit" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from limit" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from limit" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from help" -f -a "status" -d 'Show how short memory is, what models take, and what was done last'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from help" -f -a "flush" -d 'Let all models leave memory that are not pinned, and wait until they have; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from help" -f -a "load" -d 'Load a model, or change whether it stays; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from help" -f -a "unload" -d 'Let a model leave memory, and wait until it has; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from help" -f -a "limit" -d 'Limit the daemon\'s memory until its next start; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c caxton -n "__fish_caxton_using_subcommand status" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand status" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand status" -l json -d 'Print the daemon\'s answer in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand status" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand events" -l since -d 'Begin after the event with this id; 0 is everything that is remembered' -r
complete -c caxton -n "__fish_caxton_using_subcommand events" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand events" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand events" -l json -d 'Print each event as one line of JSON'
complete -c caxton -n "__fish_caxton_using_subcommand events" -l no-follow -d 'End with the last event that is remembered'
complete -c caxton -n "__fish_caxton_using_subcommand events" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand top" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand top" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand top" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l model -d 'A package file, or the id of an installed model; the store must not be in use by a daemon' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l input -d 'The texts: one JSON string a line' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l precision -d 'What to compute in [default: embedding.precision of the configuration]' -r -f -a "auto\t'The fastest here that keeps near f32: bf16, or int8 for a package of integers, or f32'
f32\t'Exact'
int8\t'Weights and activations as integers of 8 bits'
bf16\t'On a processor with AMX or AVX-512 BF16; f32 on others'"
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l threads -d 'Threads of the engine [default: embedding.threads of the configuration]' -r
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l batch-tokens -d 'Tokens of one pass [default: embedding.batch_tokens of the configuration]' -r
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l seconds -d 'How long to go over all texts; the round that is begun is finished, one at least' -r
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l rounds -d 'Go over all texts exactly N times and measure nothing else, for emulators and profilers' -r
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l output -d 'Write the vectors to this safetensors file: "embedding", f32, a row for each text in order' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l json -d 'Print JSON, for programs'
complete -c caxton -n "__fish_caxton_using_subcommand bench" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c caxton -n "__fish_caxton_using_subcommand check" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand check" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand check" -l diff -d 'Show what would change if the daemon reloaded now'
complete -c caxton -n "__fish_caxton_using_subcommand check" -l defaults -d 'Show what differs from the defaults, whatever a daemon has in force'
complete -c caxton -n "__fish_caxton_using_subcommand check" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand cat-config" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand cat-config" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand cat-config" -l json -d 'Print it in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand cat-config" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand doctor" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand doctor" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand doctor" -l json -d 'Print JSON, for programs'
complete -c caxton -n "__fish_caxton_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand demo" -l bundled -d 'A directory with packages, one of them bundled-mini [default: the one that came with Caxton]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand demo" -l socket -d 'The daemon\'s socket [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand demo" -l config -d 'Read this configuration file instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand demo" -l wait -d 'Keep the daemon until Ctrl-C, so that the curl line can be tried'
complete -c caxton -n "__fish_caxton_using_subcommand demo" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed model memory status events top bench check cat-config doctor demo help" -f -a "embed" -d 'Print the vectors of texts, one line each; without TEXT, of the lines of standard input'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed model memory status events top bench check cat-config doctor demo help" -f -a "model" -d 'Install, verify, list and pack models'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed model memory status events top bench check cat-config doctor demo help" -f -a "memory" -d 'Show and change what is in memory'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed model memory status events top bench check cat-config doctor demo help" -f -a "status" -d 'Show what the daemon is doing'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed model memory status events top bench check cat-config doctor demo help" -f -a "events" -d 'Show what happens to models, memory, packages and the configuration'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed model memory status events top bench check cat-config doctor demo help" -f -a "top" -d 'Watch models, memory, queue, throughput and events; load, unload and pin models by key'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed model memory status events top bench check cat-config doctor demo help" -f -a "bench" -d 'Measure how fast a model is on this machine, without a daemon'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed model memory status events top bench check cat-config doctor demo help" -f -a "check" -d 'Show every problem of a configuration with its file, line and column, without starting anything'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed model memory status events top bench check cat-config doctor demo help" -f -a "cat-config" -d 'Print every value that the files give, and where it was written'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed model memory status events top bench check cat-config doctor demo help" -f -a "doctor" -d 'Find out what is wrong on this machine, and how to mend it'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed model memory status events top bench check cat-config doctor demo help" -f -a "demo" -d 'Start a daemon in a temporary place, embed a dozen sentences through its socket, clean up'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed model memory status events top bench check cat-config doctor demo help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "pack" -d 'Make a package from a sentence-transformers directory'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "install" -d 'Install a package, or a directory that is packed first; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "verify" -d 'Check a package file, or every file of an installed model, against its digests'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "list" -d 'List installed models'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "show" -d 'Show everything about an installed model'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "stats" -d 'Show how much each model is used and how fast it is'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "rollback" -d 'Let an id mean an earlier version, until one above all others is installed; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "remove" -d 'Remove an installed model; its file leaves the drop directory, too; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "export" -d 'Write an installed model as a package; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "known" -d 'List the models whose names, prompts and licences are built in'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from memory" -f -a "status" -d 'Show how short memory is, what models take, and what was done last'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from memory" -f -a "flush" -d 'Let all models leave memory that are not pinned, and wait until they have; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from memory" -f -a "load" -d 'Load a model, or change whether it stays; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from memory" -f -a "unload" -d 'Let a model leave memory, and wait until it has; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from memory" -f -a "limit" -d 'Limit the daemon\'s memory until its next start; for administrators'
