{{/* Where the result goes. */}}
{{- define "fettle.outputDir" -}}
{{- default (printf "%s/output" .Values.storage.mountPath) .Values.config.output_dir -}}
{{- end -}}

{{/* The program's configuration: the user's, and what follows from other values. */}}
{{- define "fettle.config" -}}
{{- $own := dict "device" .Values.device "output_dir" (include "fettle.outputDir" .) -}}
{{- if gt (int .Values.accelerators) 1 -}}{{- $_ := set $own "nproc_per_node" (int .Values.accelerators) -}}{{- end -}}
{{- if .Values.metrics.enabled -}}{{- $_ := set $own "metrics_port" (int .Values.metrics.port) -}}{{- end -}}
{{- if and .Values.tensorboard.enabled (not (hasKey .Values.config "report_to")) -}}
{{- $_ := set $own "report_to" "tensorboard" -}}
{{- end -}}
{{- merge $own (deepCopy .Values.config) | toPrettyJson -}}
{{- end -}}

{{/* JSON list of an option of paths: a list, a JSON array, or one string with commas, since a path may hold spaces. */}}
{{- define "fettle.list" -}}
{{- if kindIs "slice" . -}}{{ toJson . }}
{{- else -}}
{{- $text := toString (default "" .) | trim -}}
{{- if hasPrefix "[" $text -}}{{ $text }}{{- else -}}{{ regexSplit " *, *" $text -1 | compact | toJson }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* Options that take a folder, or a name of the hub. */}}
{{- define "fettle.folderOptions" -}}
{{- list "model_name_or_path" "tokenizer_name" "config_name" "adapter_name_or_path" "dataset_name" | toJson -}}
{{- end -}}

{{/* JSON list of the files that the configuration names as records. */}}
{{- define "fettle.files" -}}
{{- $files := list -}}
{{- range list "train_file" "validation_file" -}}
{{- $files = concat $files (include "fettle.list" (get $.Values.config .) | fromJsonArray) -}}
{{- end -}}
{{- toJson $files -}}
{{- end -}}

{{/* JSON list of what the configuration names on the volume: it may have to be uploaded first. */}}
{{- define "fettle.dataPaths" -}}
{{- $paths := list -}}
{{- if .Values.waitForData.enabled -}}
{{- $named := list -}}
{{- range append (include "fettle.folderOptions" . | fromJsonArray) "prompt_template" -}}
{{- $named = append $named (toString (default "" (get $.Values.config .))) -}}
{{- end -}}
{{- range concat $named (include "fettle.files" . | fromJsonArray) -}}
{{- if hasPrefix (printf "%s/" $.Values.storage.mountPath) . -}}{{- $paths = append $paths . -}}{{- end -}}
{{- end -}}
{{- $paths = concat $paths .Values.waitForData.paths -}}
{{- end -}}
{{- uniq $paths | toJson -}}
{{- end -}}

{{/* "true" for what is on this machine, not on the hub. */}}
{{- define "fettle.isPath" -}}
{{- if regexMatch "^[./~]|[.]gguf$" . -}}true{{- end -}}
{{- end -}}

{{/* "true" if model or data are fetched first: the configuration names what is no path, unless download.enabled is false. */}}
{{- define "fettle.downloads" -}}
{{- if ne (toString .Values.download.enabled) "false" -}}
{{- $fetched := false -}}
{{- range include "fettle.folderOptions" . | fromJsonArray -}}
{{- if not (include "fettle.isPath" (toString (default "/" (get $.Values.config .)))) -}}{{- $fetched = true -}}{{- end -}}
{{- end -}}
{{- range include "fettle.files" . | fromJsonArray -}}
{{- if regexMatch "^https?://" . -}}{{- $fetched = true -}}{{- end -}}
{{- end -}}
{{- if $fetched -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* JSON list of the ports on which what is fetched is reached: the hub's, those of the records' URLs, the proxies'. */}}
{{- define "fettle.hubPorts" -}}
{{- $ports := list -}}
{{- range concat (list (default "https://huggingface.co" .Values.hub.endpoint)) (include "fettle.files" . | fromJsonArray) -}}
{{- if regexMatch "^https?://" . -}}
{{- $port := regexFind ":[0-9]+(/|$)" . | trimPrefix ":" | trimSuffix "/" -}}
{{- $ports = append $ports (int (default (ternary 80 443 (hasPrefix "http://" .)) $port)) -}}
{{- end -}}
{{- end -}}
{{/* 1080 is what curl takes for a proxy without a port. */}}
{{- range list .Values.proxy.httpProxy .Values.proxy.httpsProxy -}}
{{- if . -}}
{{- $port := regexFind ":[0-9]+(/|$)" . | trimPrefix ":" | trimSuffix "/" -}}
{{- $ports = append $ports (int (default (ternary 443 1080 (hasPrefix "https://" .)) $port)) -}}
{{- end -}}
{{- end -}}
{{- default ($ports | uniq) .Values.networkPolicy.hubPorts | toJson -}}
{{- end -}}

{{/* Refuses what the schema cannot see. */}}
{{- define "fettle.validate" -}}
{{- $errors := list -}}
{{- range $option, $value := dict "device" "device" "no_cuda" "device" "use_cpu" "device" "use_habana" "device" "nproc_per_node" "accelerators" "metrics_port" "metrics.port" -}}
{{- if hasKey $.Values.config $option -}}
{{- $errors = append $errors (printf "config.%s: set the value %s in its place" $option $value) -}}
{{- end -}}
{{- end -}}
{{/* Other names of options that the templates look at: they would look past them. */}}
{{- range $other, $option := dict "model" "model_name_or_path" "tokenizer_name_or_path" "tokenizer_name" "peft_model_dir" "adapter_name_or_path" "dataset" "dataset_name" "eval_dataset" "validation_file" "chat_template_path" "prompt_template" "use_lora" "use_peft" -}}
{{- if hasKey $.Values.config $other -}}
{{- $errors = append $errors (printf "config.%s: write config.%s, its name here" $other $option) -}}
{{- end -}}
{{- end -}}
{{- range list "token" "hub_token" "use_auth_token" -}}
{{- if kindIs "string" (get $.Values.config .) -}}
{{- if get $.Values.config . -}}
{{- $errors = append $errors (printf "config.%s: a ConfigMap is no place for a secret; set hub.existingSecret.name or hub.token" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not .Values.config.model_name_or_path -}}
{{- $errors = append $errors "config.model_name_or_path: name the model: a hub name, or a path in the image or on the volume" -}}
{{- end -}}
{{- if and .Values.storage.existingClaim (not .Values.config.output_dir) -}}
{{- $errors = append $errors (printf "config.output_dir: storage.existingClaim may hold the result of another release; name a folder of this one, for instance %s/%s/output" .Values.storage.mountPath .Release.Name) -}}
{{- end -}}
{{- $output := include "fettle.outputDir" . -}}
{{- $mounts := list .Values.storage.mountPath -}}
{{- range .Values.extraVolumeMounts -}}{{- $mounts = append $mounts .mountPath -}}{{- end -}}
{{- $kept := false -}}
{{- range $mounts -}}{{- if hasPrefix (printf "%s/" .) $output -}}{{- $kept = true -}}{{- end -}}{{- end -}}
{{- if not $kept -}}
{{- $errors = append $errors (printf "config.output_dir: %s lies on no volume, so the result would be lost with the pod; put it under %s" $output .Values.storage.mountPath) -}}
{{- end -}}
{{- if and (gt (int .Values.nodes) 1) (include "fettle.oneNode" .) -}}
{{- $errors = append $errors "storage.accessModes: several nodes write to one volume: ReadWriteMany is needed" -}}
{{- end -}}
{{- if and (has "ReadWriteOncePod" .Values.storage.accessModes) (or .Values.dataAccess.enabled .Values.tensorboard.enabled) -}}
{{- $errors = append $errors "storage.accessModes: with ReadWriteOncePod the training pod alone can have the volume: set dataAccess.enabled and tensorboard.enabled to false" -}}
{{- end -}}
{{- if and (trim .Values.hub.token) .Values.hub.existingSecret.name -}}
{{- $errors = append $errors "hub.token: hub.existingSecret.name is set too; keep one" -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.extraEnv -}}
{{- if has .name $names -}}{{- $errors = append $errors (printf "extraEnv: %s is there twice" .name) -}}{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- if $errors -}}{{- fail (printf "\n%s" (join "\n" $errors)) -}}{{- end -}}
{{- end -}}
