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

complete -c caxton -n "__fish_caxton_needs_command" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_needs_command" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_needs_command" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_needs_command" -s V -l version -d 'Print version'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "embed" -d 'Print the vectors of texts, one line for each text'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "rank" -d 'Sort lines of standard input by their similarity to a query, the most similar first'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "model" -d 'Install, verify, list and pack models'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "memory" -d 'Show memory, load and unload models, and limit the memory of the daemon'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "status" -d 'Show the state of the daemon: models, queue, memory, store and sandbox'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "events" -d 'Show the events of models, memory, packages and the configuration'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "top" -d 'Watch models, memory, queue, throughput and events, and load, unload and pin models by key'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "bench" -d 'Measure the speed of a model on this machine, without a daemon, or the speed of the daemon'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "check" -d 'Check a configuration, and show every problem with its file, line and column'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "cat-config" -d 'Print every value of the configuration, with the file, line and column that set it'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "doctor" -d 'Find the problems of this machine, and show how to repair them'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "demo" -d 'Start a temporary daemon, embed twelve sentences through its socket, and clean up'
complete -c caxton -n "__fish_caxton_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c caxton -n "__fish_caxton_using_subcommand embed" -l model -d 'Model or alias [default: the daemon\'s default model]' -r
complete -c caxton -n "__fish_caxton_using_subcommand embed" -l additional-model -d 'Further model that embeds the same texts; up to three may be given. The vectors of a text follow each other in the order of the models' -r
complete -c caxton -n "__fish_caxton_using_subcommand embed" -l prompt -d 'Prompt of the model to put before each text, such as "query"' -r
complete -c caxton -n "__fish_caxton_using_subcommand embed" -l skip -d 'Number of lines of standard input to skip, to continue after an interruption' -r
complete -c caxton -n "__fish_caxton_using_subcommand embed" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand embed" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand embed" -l json-lines -d 'Print one JSON object for each text, in order: the number of its line, the model and the vector. For large inputs'
complete -c caxton -n "__fish_caxton_using_subcommand embed" -l json -d 'Print the complete answer of the daemon in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand embed" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand rank" -l model -d 'Model or alias [default: the daemon\'s reranker, or its default model]' -r
complete -c caxton -n "__fish_caxton_using_subcommand rank" -l mode -d 'Comparison by meaning, by the meaning of each token, by keywords, or by meaning and keywords' -r -f -a "semantic\t''
multi-vector\t''
hybrid\t''
keyword\t''"
complete -c caxton -n "__fish_caxton_using_subcommand rank" -l top -d 'Number of best lines to print [default: all]' -r
complete -c caxton -n "__fish_caxton_using_subcommand rank" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand rank" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand rank" -l json -d 'Print the answer of the daemon in JSON. Its indexes count the lines that are not empty, from 0'
complete -c caxton -n "__fish_caxton_using_subcommand rank" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "pack" -d 'Make a package from a directory in the layout of sentence-transformers, or from a GGUF file'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "install" -d 'Install packages, or pack and install a directory; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "verify" -d 'Verify a package, or every file of an installed model, against its digests'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "list" -d 'List installed models'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "show" -d 'Show all properties of an installed model'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "stats" -d 'Show the use and the speed of each model'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "rollback" -d 'Make an id resolve to an earlier version, until a version above all others is installed; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "approve" -d 'Let an id resolve to an update that waits for approval; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "remove" -d 'Remove an installed model, and its file in the drop directory; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "export" -d 'Write an installed model as a package; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "compare" -d 'Compare two models on your texts, before you change from one to the other'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "recommend" -d 'Show the installed models that suit a task, the best first, with the reason'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "unused" -d 'List models without a use for some time, the longest unused ones first'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "known" -d 'List the known models, whose names, prompts and licences are built in, or show one'
complete -c caxton -n "__fish_caxton_using_subcommand model; and not __fish_seen_subcommand_from pack install verify list show stats rollback approve remove export compare recommend unused known help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l source -d 'Directory of the model, in the layout of sentence-transformers or transformers, or a GGUF file. Without modules.json, --original or both of --pooling and --normalize state the missing steps' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l model-id -d 'Id of the model [default: the name of the directory, or of the GGUF file]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l original -d 'Known model in the directory, if its id differs from the model id. It gives licence, languages and prompts, and without modules.json the pooling and the normalization' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l model-version -d 'Version of the package [default: 1]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l precision -d 'Format of the stored weights [default: the format in the directory; f16 for a GGUF file with matrices in 16 bits or fewer, except bf16]' -r -f -a "f32\t''
f16\t''
int8\t''
int4-table\t''"
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l license -d 'SPDX expression of the model\'s licence [default: the licence of the known model]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l revision -d 'Revision of the directory at its origin. If it is that of the known model, other weights than the published ones are refused' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l matryoshka-dimensions -d 'Smaller lengths to which vectors may be cut, because the model was trained for them, such as 256,128 [default: the list in the directory, or the one of the published model]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l pooling -d 'Step that makes one vector of the vectors of the tokens [default: the step in modules.json, or the one of the known model]. The model card of the model states it' -r -f -a "mean\t''
cls\t''
max\t''
mean_sqrt_len\t''
lasttoken\t''"
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l normalize -d 'Whether the vectors get length 1 [default: as in modules.json, or as for the known model, or true for a GGUF file]' -r -f -a "true\t''
false\t''"
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l max-sequence-length -d 'Longest text of the package in tokens, if it shall be less than that of the directory: a longer text is truncated. A smaller number limits the memory and the time of a request' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l output -d 'Package to write. The file appears when it is complete' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from pack" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l source -d 'Directory or GGUF file of a model to pack and install in one step, as for `caxton model pack`' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l model-id -d 'Id of the model [default: the name of the directory, or of the GGUF file]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l original -d 'Known model in the directory, if its id differs from the model id. It gives licence, languages and prompts, and without modules.json the pooling and the normalization' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l model-version -d 'Version of the package [default: 1]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l precision -d 'Format of the stored weights [default: the format in the directory; f16 for a GGUF file with matrices in 16 bits or fewer, except bf16]' -r -f -a "f32\t''
f16\t''
int8\t''
int4-table\t''"
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l license -d 'SPDX expression of the model\'s licence [default: the licence of the known model]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l revision -d 'Revision of the directory at its origin. If it is that of the known model, other weights than the published ones are refused' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l matryoshka-dimensions -d 'Smaller lengths to which vectors may be cut, because the model was trained for them, such as 256,128 [default: the list in the directory, or the one of the published model]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l pooling -d 'Step that makes one vector of the vectors of the tokens [default: the step in modules.json, or the one of the known model]. The model card of the model states it' -r -f -a "mean\t''
cls\t''
max\t''
mean_sqrt_len\t''
lasttoken\t''"
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l normalize -d 'Whether the vectors get length 1 [default: as in modules.json, or as for the known model, or true for a GGUF file]' -r -f -a "true\t''
false\t''"
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l max-sequence-length -d 'Longest text of the package in tokens, if it shall be less than that of the directory: a longer text is truncated. A smaller number limits the memory and the time of a request' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l replace -d 'Allow another embedding space for the id. Vectors from before and after cannot be compared'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l allow-downgrade -d 'Install a signed package although a higher version was installed. The id still resolves to the highest version'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l validate-checksums -d 'Hash every installed file once more after the installation, which always checks the digests'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -l json -d 'Print the result in JSON; a list of results if several files are given'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from install" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from verify" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from verify" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from verify" -l json -d 'Print a report in JSON: every file with its size and digest, whether the model can be loaded, the cosine of its self-test, the time of the load, the memory, and all faults. An installed model is loaded, too'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from verify" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from list" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from list" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from list" -l json -d 'Print the answer in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from list" -l licenses -d 'Print the licence and the origin of each model'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from show" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from show" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from show" -l json -d 'Print the answer in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from stats" -l sort -d 'Order of the models: by name, or the most used first' -r -f -a "name\t''
use\t''"
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from stats" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from stats" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from stats" -l json -d 'Print the complete answer of the daemon in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from stats" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from rollback" -l to -d 'Version, or the beginning of a revision, to which the id resolves [default: the version before]' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from rollback" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from rollback" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from rollback" -l clear -d 'Make the id resolve to its highest version again'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from rollback" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from approve" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from approve" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from approve" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from remove" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from remove" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from export" -l model-id -d 'Model, as an option in place of the argument' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from export" -l output -d 'Package to write, or `-` for standard output. A file appears when it is complete. Its name must end in `.model.tar.zst` for the drop directory to accept it' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from export" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from export" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from export" -l include-metadata -d 'Accepted for scripts, and without effect: a package always contains its metadata'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from export" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from compare" -l texts -d 'File of texts, one in each line, as it is or as a JSON string; at most 5,000 texts of 64 KiB' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from compare" -l pairs -d 'File of queries with a relevant text in each line: QUERY, tab, TEXT, and optionally a tab and a grade from 0 to 100, or the same as a JSON list. Each query is searched among the texts of both files' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from compare" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from compare" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from compare" -l json -d 'Print the report in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from compare" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from recommend" -l task -d 'Task for which vectors are wanted' -r -f -a "embedding\t''
similarity\t''
search\t''
retrieval\t''
classification\t''
clustering\t''
code_search\t''
rerank\t''"
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from recommend" -l complexity -d 'Difficulty of telling the texts apart: low, medium, high, or a number from 0 to 1' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from recommend" -l max-latency -d 'Longest latency of 95 in 100 requests, such as 50ms. Slower models are left out' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from recommend" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from recommend" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from recommend" -l load -d 'Load the first of these models; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from recommend" -l json -d 'Print the answer of the daemon in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from recommend" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from unused" -l for -d 'Time without a use, such as 12h or 90d' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from unused" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from unused" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from unused" -l json -d 'Print the list in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from unused" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -l language -d 'Only models for this language, such as de. Models for many languages are listed too' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -l task -d 'Only models that were trained for this task' -r -f -a "similarity\t''
search\t''
code-search\t''
rerank\t''"
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -l license -d 'Only models with one of these licences, such as Apache-2.0,MIT' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -l max-size -d 'Only models whose weights have at most this size in int8, such as 100MiB' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -l max-memory -d 'Only models that take at most this memory in int8, such as 500MiB' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -l family -d 'Only models of this family, such as bge' -r
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -l sort -d 'Order of the list [default: related models together]' -r -f -a "size\t''
memory\t''
name\t''
dimensions\t''"
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -l runs -d 'Only models that this version of Caxton can run'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -l json -d 'Print all facts about the models in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from known" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "pack" -d 'Make a package from a directory in the layout of sentence-transformers, or from a GGUF file'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "install" -d 'Install packages, or pack and install a directory; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "verify" -d 'Verify a package, or every file of an installed model, against its digests'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "list" -d 'List installed models'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "show" -d 'Show all properties of an installed model'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "stats" -d 'Show the use and the speed of each model'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "rollback" -d 'Make an id resolve to an earlier version, until a version above all others is installed; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "approve" -d 'Let an id resolve to an update that waits for approval; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Remove an installed model, and its file in the drop directory; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "export" -d 'Write an installed model as a package; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "compare" -d 'Compare two models on your texts, before you change from one to the other'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "recommend" -d 'Show the installed models that suit a task, the best first, with the reason'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "unused" -d 'List models without a use for some time, the longest unused ones first'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "known" -d 'List the known models, whose names, prompts and licences are built in, or show one'
complete -c caxton -n "__fish_caxton_using_subcommand model; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -f -a "status" -d 'Show the memory pressure, the limits, and the models with their memory'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -f -a "flush" -d 'Unload all models that are not pinned, or only idle ones, and wait until they are unloaded; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -f -a "load" -d 'Load models, and optionally pin or unpin them; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -f -a "unload" -d 'Unload a model, and wait until it is unloaded, at most 10 s; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -f -a "limit" -d 'Limit the daemon\'s memory until its next start or until memory.memory_limit is changed; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and not __fish_seen_subcommand_from status flush load unload limit help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from status" -l sort -d 'Order of the models: by name, the last used first, or the largest first' -r -f -a "name\t''
use\t''
memory\t''"
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from status" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from status" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from status" -l json -d 'Print the complete answer of the daemon in JSON, with the last actions against pressure'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from status" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from flush" -l idle -d 'Unload only the models without a request for this time, such as 10m' -r
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from flush" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from flush" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from flush" -l caches -d 'Unload no model, and clear only the caches'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from flush" -l json -d 'Print the complete answer of the daemon in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from flush" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from load" -l wait -d 'Longest wait for all models together, up to 5m [default: 30s]. The loads continue afterwards' -r
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from load" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from load" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from load" -l pin -d 'Exclude the models from eviction until the daemon\'s next start'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from load" -l unpin -d 'Allow the eviction of the models again'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from load" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from unload" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from unload" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from unload" -l force -d 'Drop the requests that wait for the model. Their clients get an error and may retry'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from unload" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from limit" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from limit" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from limit" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from help" -f -a "status" -d 'Show the memory pressure, the limits, and the models with their memory'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from help" -f -a "flush" -d 'Unload all models that are not pinned, or only idle ones, and wait until they are unloaded; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from help" -f -a "load" -d 'Load models, and optionally pin or unpin them; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from help" -f -a "unload" -d 'Unload a model, and wait until it is unloaded, at most 10 s; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from help" -f -a "limit" -d 'Limit the daemon\'s memory until its next start or until memory.memory_limit is changed; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand memory; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c caxton -n "__fish_caxton_using_subcommand status" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand status" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand status" -l json -d 'Print the status of the daemon in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand status" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand events" -l since -d 'Event id after which to begin; 0 prints all events that the daemon keeps' -r
complete -c caxton -n "__fish_caxton_using_subcommand events" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand events" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand events" -l json -d 'Print each event as one line of JSON'
complete -c caxton -n "__fish_caxton_using_subcommand events" -l no-follow -d 'Stop after the last event that the daemon keeps'
complete -c caxton -n "__fish_caxton_using_subcommand events" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand top" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand top" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand top" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l model -d 'Package file, or id of an installed model. An id needs a store that no daemon uses. With --daemon, a name of a model, and the default model if it is omitted' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l against -d 'Second model, which is measured in the same way. Then the vectors of both are compared. The file may have at most 5,000 texts of 64 KiB' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l input -d 'File of texts, one in each line, as it is or as a JSON string' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l connections -d 'Connections to the daemon' -r
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l texts-per-request -d 'Texts of each request to the daemon' -r
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l precision -d 'Precision of the computation [default: embedding.precision of the configuration]' -r -f -a "auto\t'Fastest precision on this processor that stays close to f32: bf16, or int8 for a package of integers, or f32'
f32\t'Exact'
int8\t'8-bit integers for weights and activations'
bf16\t'bf16 on a processor with AMX or AVX-512 BF16, f32 on others'"
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l threads -d 'Threads of the engine [default: embedding.threads of the configuration]' -r
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l batch-tokens -d 'Tokens of one pass [default: embedding.batch_tokens of the configuration]' -r
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l seconds -d 'Time for rounds over all texts. The last round is finished, and there is at least one. With --daemon, the time in which requests are sent' -r
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l rounds -d 'Number of rounds over all texts, without the other measurements, for emulators and profilers' -r
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l output -d 'Safetensors file for the vectors: tensor "embedding", f32, one row for each text in order' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l daemon -d 'Measure the running daemon in place of a model in this process: several connections send requests at once, and each waits for its answer. The report has the requests per second and the latency'
complete -c caxton -n "__fish_caxton_using_subcommand bench" -l json -d 'Print the report in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand bench" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c caxton -n "__fish_caxton_using_subcommand check" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand check" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand check" -l diff -d 'Show the values that would change if the daemon reloaded now'
complete -c caxton -n "__fish_caxton_using_subcommand check" -l defaults -d 'Compare with the defaults, even when a daemon runs'
complete -c caxton -n "__fish_caxton_using_subcommand check" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand cat-config" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand cat-config" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand cat-config" -l json -d 'Print the values in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand cat-config" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand doctor" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand doctor" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand doctor" -l json -d 'Print the results in JSON'
complete -c caxton -n "__fish_caxton_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand demo" -l bundled -d 'Directory of packages that include bundled-mini [default: the packages that came with Caxton]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand demo" -l socket -d 'Socket of the daemon [default: socket.path of the configuration]' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand demo" -l config -d 'Configuration file to read instead of caxton.yaml and conf.d in /etc/caxton, /run/caxton and /usr/lib/caxton' -r -F
complete -c caxton -n "__fish_caxton_using_subcommand demo" -l wait -d 'Keep the daemon running until Ctrl-C, to try the printed curl command'
complete -c caxton -n "__fish_caxton_using_subcommand demo" -s h -l help -d 'Print help'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed rank model memory status events top bench check cat-config doctor demo help" -f -a "embed" -d 'Print the vectors of texts, one line for each text'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed rank model memory status events top bench check cat-config doctor demo help" -f -a "rank" -d 'Sort lines of standard input by their similarity to a query, the most similar first'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed rank model memory status events top bench check cat-config doctor demo help" -f -a "model" -d 'Install, verify, list and pack models'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed rank model memory status events top bench check cat-config doctor demo help" -f -a "memory" -d 'Show memory, load and unload models, and limit the memory of the daemon'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed rank model memory status events top bench check cat-config doctor demo help" -f -a "status" -d 'Show the state of the daemon: models, queue, memory, store and sandbox'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed rank model memory status events top bench check cat-config doctor demo help" -f -a "events" -d 'Show the events of models, memory, packages and the configuration'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed rank model memory status events top bench check cat-config doctor demo help" -f -a "top" -d 'Watch models, memory, queue, throughput and events, and load, unload and pin models by key'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed rank model memory status events top bench check cat-config doctor demo help" -f -a "bench" -d 'Measure the speed of a model on this machine, without a daemon, or the speed of the daemon'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed rank model memory status events top bench check cat-config doctor demo help" -f -a "check" -d 'Check a configuration, and show every problem with its file, line and column'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed rank model memory status events top bench check cat-config doctor demo help" -f -a "cat-config" -d 'Print every value of the configuration, with the file, line and column that set it'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed rank model memory status events top bench check cat-config doctor demo help" -f -a "doctor" -d 'Find the problems of this machine, and show how to repair them'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed rank model memory status events top bench check cat-config doctor demo help" -f -a "demo" -d 'Start a temporary daemon, embed twelve sentences through its socket, and clean up'
complete -c caxton -n "__fish_caxton_using_subcommand help; and not __fish_seen_subcommand_from embed rank model memory status events top bench check cat-config doctor demo help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "pack" -d 'Make a package from a directory in the layout of sentence-transformers, or from a GGUF file'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "install" -d 'Install packages, or pack and install a directory; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "verify" -d 'Verify a package, or every file of an installed model, against its digests'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "list" -d 'List installed models'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "show" -d 'Show all properties of an installed model'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "stats" -d 'Show the use and the speed of each model'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "rollback" -d 'Make an id resolve to an earlier version, until a version above all others is installed; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "approve" -d 'Let an id resolve to an update that waits for approval; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "remove" -d 'Remove an installed model, and its file in the drop directory; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "export" -d 'Write an installed model as a package; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "compare" -d 'Compare two models on your texts, before you change from one to the other'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "recommend" -d 'Show the installed models that suit a task, the best first, with the reason'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "unused" -d 'List models without a use for some time, the longest unused ones first'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from model" -f -a "known" -d 'List the known models, whose names, prompts and licences are built in, or show one'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from memory" -f -a "status" -d 'Show the memory pressure, the limits, and the models with their memory'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from memory" -f -a "flush" -d 'Unload all models that are not pinned, or only idle ones, and wait until they are unloaded; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from memory" -f -a "load" -d 'Load models, and optionally pin or unpin them; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from memory" -f -a "unload" -d 'Unload a model, and wait until it is unloaded, at most 10 s; for administrators'
complete -c caxton -n "__fish_caxton_using_subcommand help; and __fish_seen_subcommand_from memory" -f -a "limit" -d 'Limit the daemon\'s memory until its next start or until memory.memory_limit is changed; for administrators'
