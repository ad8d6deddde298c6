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

{{/* JSON list of an option that is a list, or one string with spaces or commas. */}}
{{- define "fettle.list" -}}
{{- if kindIs "slice" . -}}{{ toJson . }}
{{- else -}}{{ regexSplit "[ ,]+" (toString (default "" .)) -1 | compact | toJson }}
{{- end -}}
{{- end -}}

{{/* JSON list of what the configuration names on the volume: it may have to be uploaded first. */}}
{{- define "fettle.dataPaths" -}}
{{- $paths := list -}}
{{- if .Values.waitForData.enabled -}}
{{- $named := list -}}
{{- range list "model_name_or_path" "tokenizer_name" "config_name" "dataset_name" "eval_dataset" "train_file" "validation_file" -}}
{{- $named = concat $named (include "fettle.list" (get $.Values.config .) | fromJsonArray) -}}
{{- end -}}
{{- range $named -}}
{{- if hasPrefix (printf "%s/" $.Values.storage.mountPath) . -}}{{- $paths = append $paths . -}}{{- end -}}
{{- end -}}
{{- $paths = concat $paths .Values.waitForData.paths -}}
{{- end -}}
{{- uniq $paths | toJson -}}
{{- end -}}

{{/* "true" if model or data are fetched first: as asked for, else if the configuration names what is no path. */}}
{{- define "fettle.downloads" -}}
{{- if kindIs "bool" .Values.download.enabled -}}
{{- if .Values.download.enabled -}}true{{- end -}}
{{- else -}}
{{- range list "model_name_or_path" "tokenizer_name" "config_name" "adapter_name_or_path" "dataset_name" -}}
{{- $value := toString (default "/" (get $.Values.config .)) -}}
{{- if not (regexMatch "^[./~]" $value) -}}true{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuses what the schema cannot see. */}}
{{- define "fettle.validate" -}}
{{- $errors := list -}}
{{- range $option, $value := dict "device" "device" "nproc_per_node" "accelerators" "metrics_port" "metrics.port" -}}
{{- if hasKey $.Values.config $option -}}
{{- $errors = append $errors (printf "config.%s: set the value %s in its place" $option $value) -}}
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
